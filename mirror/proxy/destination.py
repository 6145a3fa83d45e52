"""The server that a client asks a proxy for: ``host:port`` as it stands after CONNECT.

Knows the authority-form (RFC 9112, 3.2.3; RFC 9110, 9.3.6) and the absolute-form (RFC 9112, 3.2.2).
Must not know which servers may be had.  What passes here is well-formed: one host, written one way,
and a port; everything behind compares texts and relies on that.
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


class InvalidDestination(ValueError):  # noqa: N818  # reads as the other names that are none
    """A text that names no server; the message is one line for people."""


@dataclass(frozen=True, slots=True)
class Destination:
    """A host, in lower case and without brackets, and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_connect(target: str) -> Destination:
    """What CONNECT asks for; it has to say the port.

    Raises:
        InvalidDestination: it asks for no server.
    """
    return _parse(target, None)


def parse_authority(text: str, port: int) -> Destination:
    """The server of a Host field (RFC 9110, 7.2); without a port it is ``port``.

    Raises:
        InvalidDestination: it is no server.
    """
    return _parse(text, port)


def parse_absolute(target: str, port: int, scheme: str = _SCHEME) -> tuple[Destination, str]:
    """The server and the path of ``http://server/path``; without a port it is ``port``.

    Raises:
        InvalidDestination: it is no such address.
    """
    if target[: len(scheme)].lower() != scheme:
        raise InvalidDestination(
            f"{target[:_SHOWN]!r} is for no proxy: a request names its server ({scheme}server/path)"
        )
    rest = target[len(scheme) :]
    end = next((at for at, sign in enumerate(rest) if sign in "/?#"), len(rest))
    path = rest[end:]
    return _parse(rest[:end], port), path if path.startswith("/") else f"/{path}"


def _parse(text: str, default_port: int | None) -> Destination:
    matched = _AUTHORITY.fullmatch(text)
    if matched is None:
        raise InvalidDestination(f"{text[:_SHOWN]!r} is no server (host:port)")
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
            raise InvalidDestination(f"{text[:_SHOWN]!r} is no IPv6 address") from error
    name = text.lower().removesuffix(".")
    # What ends in a number is an address to whoever resolves it: 127.1, 0x7f000001, 2130706433.
    if _NUMBERS.fullmatch(name.rpartition(".")[2]):
        try:
            return str(ipaddress.IPv4Address(name))
        except ValueError as error:
            raise InvalidDestination(f"{text[:_SHOWN]!r} is no IPv4 address") from error
    if len(name) > _MOST_NAME or not _NAME.fullmatch(name):
        raise InvalidDestination(f"{text[:_SHOWN]!r} is no name of a host")
    return name
