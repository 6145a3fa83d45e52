"""Addresses of the mirror for clients."""

import ipaddress
from dataclasses import dataclass
from urllib.parse import urlsplit


@dataclass(frozen=True, slots=True)
class ClientUrl:
    """The URL of the mirror that clients use."""

    url: str

    @property
    def netloc(self) -> str:
        """``host[:port]``, as written before an image."""
        return urlsplit(self.url).netloc

    @property
    def host(self) -> str:
        """The host without port and brackets."""
        return urlsplit(self.url).hostname or ""

    @property
    def plain(self) -> bool:
        """Whether clients reach the mirror without TLS."""
        return urlsplit(self.url).scheme == "http"


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
