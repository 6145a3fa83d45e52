"""Where the mirror listens, as it is written: ``HOST:PORT``, ``:PORT``, ``unix:/path``."""

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
    """A host, empty for all addresses of IPv4 and IPv6, and a port, 0 for any."""

    host: str
    port: int

    @property
    def is_local(self) -> bool:
        """Whether only this machine gets there."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """A socket in the file system."""

    path: Path

    def __str__(self) -> str:
        return f"unix:{self.path}"


Address = TcpAddress | UnixAddress


def parse_listen(text: str) -> Address:
    """Where to listen.

    Raises:
        ValueError: it is no such place.
    """
    unix = _UNIX.fullmatch(text)
    if unix and Path(unix[1]).name:  # the root has none, however it is written
        return UnixAddress(Path(unix[1]))
    host, port = split_listen(text)
    return TcpAddress(host, port)


def split_listen(text: str) -> tuple[str, int]:
    """Host and port of ``HOST:PORT``; an empty host means all.

    Raises:
        ValueError: it is no such thing.
    """
    matched = _TCP.fullmatch(text)
    if matched is None or int(matched[3]) > _MAX_PORT:
        raise ValueError(_ALLOWED)
    return matched[1] or matched[2] or "", int(matched[3])


def checked_listen(text: str) -> str:
    """One place to listen, as it was written.

    Raises:
        ValueError: it is no such place.
    """
    parse_listen(text)
    return text


def listed(value: Any) -> Any:
    """Several places of one text, which an environment variable separates by commas.

    Raises:
        ValueError: the text is one place, and wrong.
    """
    if not isinstance(value, str):
        return value
    parts = [part.strip() for part in value.split(",")]
    return [checked_listen(value)] if len(parts) == 1 else parts


def checked_mode(text: str) -> str:
    """The mode of a socket file.

    Raises:
        ValueError: it is none.
    """
    if not _MODE.fullmatch(text):
        raise ValueError('a mode in octal digits such as "0660" or "0666"')
    return text


def lookup_outermost(addresses: Iterable[Address]) -> TcpAddress | None:
    """The address to tell clients: the first that others can reach, else the first over TCP."""
    over_tcp = [address for address in addresses if isinstance(address, TcpAddress)]
    reachable = [address for address in over_tcp if not address.is_local]
    return next(iter([*reachable, *over_tcp]), None)
