"""NO_PROXY as Docker reads it (Go's httpproxy: names, suffixes, addresses, networks, ports)."""

import ipaddress

from mirror.clients import is_loopback


def goes_direct(no_proxy: str, host: str, port: int) -> bool:
    """Whether a client with this NO_PROXY asks ``host`` itself and not its proxy."""
    if is_loopback(host):
        return True
    patterns = [pattern.strip().lower() for pattern in no_proxy.split(",")]
    return any(_matches(pattern, host.lower(), port) for pattern in patterns if pattern)


def _matches(pattern: str, host: str, port: int) -> bool:
    if pattern == "*":
        return True
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(pattern, strict=False)
    except (ValueError, TypeError):
        pass  # a name on one side or the other
    name, colon, wanted = pattern.rpartition(":")
    if colon and wanted.isdigit() and not name.endswith(":"):
        if int(wanted) != port:
            return False
        pattern = name.strip("[]")
    name = pattern.removeprefix("*").removeprefix(".")
    return host.endswith(f".{name}") or (host == name and not pattern.startswith(("*", ".")))
