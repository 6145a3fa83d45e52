"""Addresses to listen at: ``HOST:PORT``, ``:PORT``, ``unix:/path``."""

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

_TCP: Final = re.compile(r"(?:\[([0-9a-fA-F:.]+)\]|([^:\[\]\s/]*)):([0-9]{1,5})", re.ASCII)
_UNIX: Final = re.compile(r"unix:(/[^\x00-\x1f\x7f]+)")
_MODE: Final = re.compile(r"0?[0-7]{3}", re.ASCII)
_MAX_PORT: Final = 65535
_ALLOWED: Final = "HOST:PORT, such as 0.0.0.0:5000, [::]:5000 or :5000, or unix:/PATH"


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """A host (empty: all addresses of IPv4 and IPv6) and a port (0: any free port)."""

    host: str
    port: int

    @property
    def is_local(self) -> bool:
        """Whether only this machine can connect to the address."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """The path of a unix socket."""

    path: Path

    def __str__(self) -> str:
        return f"unix:{self.path}"


Address = TcpAddress | UnixAddress


def parse_listen(text: str) -> Address:
    """Parse an address to listen at.

    Raises:
        ValueError: the text is not such an address.
    """
    unix = _UNIX.fullmatch(text)
    if unix and Path(unix[1]).name:  # the root directory has no name
        return UnixAddress(Path(unix[1]))
    host, port = split_listen(text)
    return TcpAddress(host, port)


def split_listen(text: str) -> tuple[str, int]:
    """Split ``HOST:PORT``; an empty host means all addresses.

    Raises:
        ValueError: the text has another form.
    """
    matched = _TCP.fullmatch(text)
    if matched is None or int(matched[3]) > _MAX_PORT:
        raise ValueError(_ALLOWED)
    return matched[1] or matched[2] or "", int(matched[3])


def checked_listen(text: str) -> str:
    """Return an address to listen at, as written.

    Raises:
        ValueError: the text is not such an address.
    """
    parse_listen(text)
    return text


def listed(value: Any) -> Any:
    """Split a text at its commas, for environment variables; return other values unchanged.

    Raises:
        ValueError: the text is a single address and invalid.
    """
    if not isinstance(value, str):
        return value
    parts = [part.strip() for part in value.split(",")]
    return [checked_listen(value)] if len(parts) == 1 else parts


def checked_mode(text: str) -> str:
    """Return the mode of a socket file, as written.

    Raises:
        ValueError: the text is not a mode.
    """
    if not _MODE.fullmatch(text):
        raise ValueError('a mode in octal digits such as "0660" or "0666"')
    return text


def lookup_outermost(addresses: Iterable[Address]) -> TcpAddress | None:
    """Return the first TCP address that other machines can reach, else the first TCP address."""
    over_tcp = [address for address in addresses if isinstance(address, TcpAddress)]
    reachable = [address for address in over_tcp if not address.is_local]
    return next(iter([*reachable, *over_tcp]), None)
