"""The server that a client names to a proxy: ``host:port``, as after CONNECT.

Parses the authority-form (RFC 9112, 3.2.3; RFC 9110, 9.3.6) and the absolute-form (RFC 9112,
3.2.2).  ``permission`` decides which servers are allowed.  A parsed destination is normalized: one
host in its only spelling, and a port.  Later code compares these texts and relies on that.
"""

import ipaddress
import re
from dataclasses import dataclass
from typing import Final

_LABEL: Final = r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME: Final = re.compile(rf"{_LABEL}(?:\.{_LABEL})*", re.ASCII)
_AUTHORITY: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\[\]:/?#@\s]+)(?::([0-9]{1,5}))?", re.ASCII)
_NUMBERS: Final = re.compile(r"(?:0x[0-9a-f]*|[0-9]+)", re.ASCII)
_MOST_NAME: Final = 253  # characters (RFC 1035, 2.3.4)
_MOST_PORT: Final = 65535
_SCHEME: Final = "http://"
_SHOWN: Final = 80


class InvalidDestination(ValueError):  # noqa: N818  # named like InvalidName
    """The text does not name a server; the message is one line for people."""


@dataclass(frozen=True, slots=True)
class Destination:
    """A host, in lower case and without brackets, and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_connect(target: str) -> Destination:
    """Parse the target of a CONNECT; the port is required.

    Raises:
        InvalidDestination: the target is not ``host:port``.
    """
    return _parse(target, None)


def parse_authority(text: str, port: int) -> Destination:
    """Parse a Host field (RFC 9110, 7.2); ``port`` is the default.

    Raises:
        InvalidDestination: the field is not ``host`` or ``host:port``.
    """
    return _parse(text, port)


def parse_absolute(target: str, port: int, scheme: str = _SCHEME) -> tuple[Destination, str]:
    """Return the server and the path of ``http://server/path``; ``port`` is the default.

    Raises:
        InvalidDestination: ``target`` has another scheme or names no valid server.
    """
    if target[: len(scheme)].lower() != scheme:
        raise InvalidDestination(
            f"{target[:_SHOWN]!r} is not a request to a proxy, which has {scheme}server/path"
        )
    rest = target[len(scheme) :]
    end = next((at for at, sign in enumerate(rest) if sign in "/?#"), len(rest))
    path = rest[end:]
    return _parse(rest[:end], port), path if path.startswith("/") else f"/{path}"


def _parse(text: str, default_port: int | None) -> Destination:
    matched = _AUTHORITY.fullmatch(text)
    if matched is None:
        raise InvalidDestination(f"{text[:_SHOWN]!r} is not a server (host:port)")
    port = default_port if matched[2] is None else int(matched[2])
    if port is None:
        raise InvalidDestination(f"{text[:_SHOWN]!r} lacks the port (host:port)")
    if not 0 < port <= _MOST_PORT:
        raise InvalidDestination(f"{text[:_SHOWN]!r} has no port between 1 and {_MOST_PORT}")
    return Destination(_host(matched[1]), port)


def _host(text: str) -> str:
    if text.startswith("["):
        try:
            return str(ipaddress.IPv6Address(text[1:-1]))
        except ValueError as error:
            raise InvalidDestination(f"{text[:_SHOWN]!r} is not an IPv6 address") from error
    name = text.lower().removesuffix(".")
    # Resolvers take a name that ends in a number for an address: 127.1, 0x7f000001, 2130706433.
    if _NUMBERS.fullmatch(name.rpartition(".")[2]):
        try:
            return str(ipaddress.IPv4Address(name))
        except ValueError as error:
            raise InvalidDestination(f"{text[:_SHOWN]!r} is not an IPv4 address") from error
    if len(name) > _MOST_NAME or not _NAME.fullmatch(name):
        raise InvalidDestination(f"{text[:_SHOWN]!r} is not a host name")
    return name
