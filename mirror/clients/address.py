"""Addresses as clients see them."""

import ipaddress


def reachable_url(listen_host: str, port: int, hostname: str, *, tls: bool = False) -> str:
    """An address under which others reach a mirror that listens there."""
    host = hostname if listen_host in {"", "0.0.0.0", "::"} else listen_host  # noqa: S104  # compared, not bound
    scheme = "https" if tls else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def is_loopback(host: str) -> bool:
    """Whether a host is this machine, to which clients speak plain http without being told."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
