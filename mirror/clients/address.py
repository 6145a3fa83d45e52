"""Addresses of the mirror for clients."""

import ipaddress


def reachable_url(listen_host: str, port: int, hostname: str, *, tls: bool = False) -> str:
    """Return the URL at which other machines reach a mirror that listens at ``listen_host``."""
    host = hostname if listen_host in {"", "0.0.0.0", "::"} else listen_host  # noqa: S104  # compared, not bound
    scheme = "https" if tls else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def is_loopback(host: str) -> bool:
    """Whether a host is this machine: clients use plain http for it without configuration."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
