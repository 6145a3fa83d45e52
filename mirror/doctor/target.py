"""The address of the mirror, and its comparison with other addresses."""

from dataclasses import dataclass
from enum import Enum, auto
from typing import Final
from urllib.parse import SplitResult, urlsplit

from mirror.clients import ClientUrl, is_loopback

_PORTS: Final = {"http": 80, "https": 443}


class Likeness(Enum):
    """The difference between an address in a file and that of the mirror."""

    SAME = auto()
    PATH = auto()
    SCHEME = auto()
    LOGIN = auto()
    PORT = auto()
    OTHER = auto()


@dataclass(frozen=True, slots=True)
class MirrorAddress(ClientUrl):
    """The address of the mirror that clients should use."""

    @property
    def port(self) -> int:
        """The port; the default one of the scheme if the URL has none."""
        return _port(urlsplit(self.url))

    def difference(self, url: str) -> str | None:
        """Return the mistake in an address meant for the mirror; None for any other address."""
        reasons = {
            Likeness.SCHEME: f"and the mirror speaks {'http' if self.plain else 'https'}",
            Likeness.PORT: f"and the mirror is at port {self.port}",
            Likeness.PATH: "and the mirror's address has no path",
            Likeness.LOGIN: "and no user and password may stand there",
        }
        return reasons.get(self.likeness(url))

    @property
    def local(self) -> bool:
        """Whether the mirror is on this machine."""
        return is_loopback(self.host)

    def likeness(self, url: str) -> Likeness:
        """Compare an address with a scheme to that of the mirror."""
        try:
            other = urlsplit(url)
            port = _port(other)
        except ValueError:
            return Likeness.OTHER
        if (other.hostname or "") != self.host:
            return Likeness.OTHER
        if port != self.port:
            # If neither has a port, the default ports differ because the schemes do.
            return Likeness.PORT if other.port or urlsplit(self.url).port else Likeness.SCHEME
        if other.scheme != urlsplit(self.url).scheme:
            return Likeness.SCHEME
        if other.username is not None:
            return Likeness.LOGIN
        extra = other.path.rstrip("/") or other.query or other.fragment
        return Likeness.PATH if extra else Likeness.SAME

    def is_at(self, netloc: str) -> bool:
        """Whether ``host[:port]`` without a scheme is the address of the mirror."""
        return self.likeness(f"{urlsplit(self.url).scheme}://{netloc}") is Likeness.SAME


def _port(parts: SplitResult) -> int:
    return parts.port or _PORTS.get(parts.scheme, 0)
