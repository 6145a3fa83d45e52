"""Types of configuration keys: the allowed values and the messages for other values.

Sizes and times have units, such as ``50GiB`` and ``12h``.  Tables refuse unknown keys.
"""

import ipaddress
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, PlainSerializer

from mirror.config.addresses import checked_listen, checked_proxy, listed

V = TypeVar("V")

_BINARY: Final = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
#: Units of earlier releases, with the units that replace them.
_OLD: Final = {"kB": "KiB", "KB": "KiB", "MB": "MiB", "GB": "GiB", "TB": "TiB"}
_DECIMAL: Final = {"kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_SIZES: Final = _BINARY | _DECIMAL | {"": 1, "B": 1}
_TIMES: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_NUMBER: Final = re.compile(r"\s*([0-9]{1,15}(?:\.[0-9]{1,6})?)\s*([A-Za-z%]*)\s*", re.ASCII)
_PERCENT: Final = 100.0
_MIN_SEGMENT_BYTES: Final = 1024 * 1024
_LEAST_WORKER_TIMEOUT: Final = 3.0
UNIX_PROXIES: Final = "unix:"
MASK: Final = "********"
# Greedy on purpose: a password may contain an @ or a slash.
_USERINFO: Final = re.compile(r"://\S*@")


@dataclass(frozen=True, slots=True)
class Size:
    """Bytes, or a share of the disk (0 to 1); ``text`` is the size as written."""

    text: str
    bytes: int = 0
    share: float | None = None

    @property
    def modern(self) -> str:
        """The size as written, or about the same in KiB, MiB, ... if written in an old unit."""
        matched = _NUMBER.fullmatch(self.text)
        unit = _OLD.get(matched[2]) if matched else None
        return self.text if unit is None else f"{self.bytes / _BINARY[unit]:.4g}{unit}"

    def of(self, disk_bytes: int) -> int:
        """Return the size in bytes on a disk of ``disk_bytes``."""
        return self.bytes if self.share is None else int(self.share * disk_bytes)

    @classmethod
    def parse(cls, text: object) -> "Size":
        """Parse ``512MiB``, ``50GiB``, ``80%``.

        Raises:
            ValueError: the text is not a size.
        """
        if isinstance(text, Size):
            return text
        matched = _NUMBER.fullmatch(str(text)) if isinstance(text, str | int) else None
        number, unit = (float(matched[1]), matched[2]) if matched else (0.0, "?")
        if unit == "%" and number <= _PERCENT:
            return cls(str(text), share=number / _PERCENT)
        if isinstance(text, bool) or unit not in _SIZES:
            raise ValueError("a size such as 512MiB, 50GiB or 80%")
        return cls(str(text), bytes=int(number * _SIZES[unit]))


@dataclass(frozen=True, slots=True)
class Duration:
    """Seconds; ``text`` is the time as written."""

    text: str
    seconds: float

    @classmethod
    def parse(cls, text: object) -> "Duration":
        """Parse ``250ms``, ``30s``, ``5m``, ``12h``, ``30d``.

        Raises:
            ValueError: the text is not a time.
        """
        if isinstance(text, Duration):
            return text
        matched = _NUMBER.fullmatch(text) if isinstance(text, str) else None
        if matched is None or (matched[2] not in _TIMES and float(matched[1]) != 0):
            raise ValueError("a time such as 30s, 5m, 12h or 30d")
        return cls(str(text), float(matched[1]) * _TIMES.get(matched[2], 1.0))


_as_text = PlainSerializer(lambda quantity: quantity.text, return_type=str)
SizeField = Annotated[Size, BeforeValidator(Size.parse), _as_text]
DurationField = Annotated[Duration, BeforeValidator(Duration.parse), _as_text]

#: For the default values of keys.
size = Size.parse
time = Duration.parse


def default_directory() -> Path:
    """Return the default cache directory: the system's for root, else that of the user."""
    return _directory("/var/cache/mirror", "XDG_CACHE_HOME", ".cache")


def state_directory(cache: Path) -> Path:
    """Return the directory for files that belong to a cache directory and need a backup."""
    if cache != default_directory():
        return Path(f"{cache}-state")
    return _directory("/var/lib/mirror", "XDG_STATE_HOME", ".local/state")


def _directory(system: str, variable: str, in_home: str) -> Path:
    if os.geteuid() == 0:
        return Path(system)
    try:
        return Path(os.environ.get(variable) or Path.home() / in_home) / "mirror"
    except RuntimeError:  # a service account without a home
        return Path(system)


def _checked_directory(directory: Path) -> Path:
    try:
        expanded = directory.expanduser()
    except RuntimeError as error:
        raise ValueError("a directory (the user does not exist)") from error
    if expanded == Path():
        raise ValueError("a directory")
    return expanded


def _checked_network(text: str) -> str:
    try:
        ipaddress.ip_network(text)
    except ValueError as error:
        raise ValueError("a network such as 10.0.0.0/8 or 2001:db8::/32") from error
    return text


def _checked_proxy_network(text: str) -> str:
    try:
        return text if text == UNIX_PROXIES else _checked_network(text)
    except ValueError as error:
        raise ValueError(f"{error}, or {UNIX_PROXIES} for clients of a unix socket") from error


def where(holds: Callable[[Any], object], allowed: str) -> AfterValidator:
    """Return a validator of values for which ``holds`` is true; ``allowed`` describes them."""

    def check(value: V) -> V:
        if not holds(value):
            raise ValueError(allowed)
        return value

    return AfterValidator(check)


def _readable(file: str) -> str:
    try:
        if file:
            Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no UTF-8"
        raise ValueError(f"a text file that can be read ({reason})") from error
    return file


def _listed(value: Any) -> Any:
    return [] if value == "" else listed(value)


def _as_written(places: tuple[str, ...]) -> str | list[str]:
    return list(places) if len(places) > 1 else "".join(places)


_Places = tuple[Annotated[str, AfterValidator(checked_listen)], ...]
_written = PlainSerializer(_as_written)
Listen = Annotated[
    _Places,
    BeforeValidator(listed),
    where(bool, "at least one place to listen, such as 0.0.0.0:5000"),
    _written,
]
OptionalListen = Annotated[_Places, BeforeValidator(_listed), _written]
Proxy = Annotated[str, AfterValidator(checked_proxy)]
ReadableFile = Annotated[str, AfterValidator(_readable)]
Timeout = Annotated[DurationField, where(lambda time: time.seconds > 0, "a time above zero")]
WorkerTimeout = Annotated[
    DurationField,
    where(
        lambda time: time.seconds <= 0 or time.seconds >= _LEAST_WORKER_TIMEOUT,
        "a time of 3s or more, or 0s for never",
    ),
]
Directory = Annotated[Path, AfterValidator(_checked_directory)]
Network = Annotated[str, AfterValidator(_checked_network)]
ProxyNetwork = Annotated[str, AfterValidator(_checked_proxy_network)]
Bytes = Annotated[
    SizeField,
    where(lambda size: size.bytes > 0, "a size above zero such as 512MiB or 50GiB"),
]
Rate = Annotated[
    SizeField,
    where(
        lambda size: size.share is None,
        "bytes per second such as 50MiB, or 0 for as fast as it goes",
    ),
]
Share = Annotated[SizeField, where(lambda size: size.share, "a share above zero such as 50%")]
Segment = Annotated[
    SizeField,
    where(lambda size: size.bytes >= _MIN_SEGMENT_BYTES, "a size of 1MiB or more, such as 16MiB"),
]


def masked(text: str) -> str:
    """Mask user and password of every address in a text."""
    return _USERINFO.sub(f"://{MASK}@", text)


class Table(BaseModel):
    """A table of the configuration."""

    model_config = ConfigDict(extra="forbid", frozen=True)
