"""Types of configuration keys: the allowed values and the messages for other values."""

import ipaddress
import os
from pathlib import Path
from typing import Annotated, Final

from pydantic import AfterValidator, BeforeValidator, PlainSerializer

from mirror.config.addresses import checked_proxy
from mirror.config.listen import checked_listen, listed
from mirror.config.quantity import Duration, DurationField, Size, SizeField

_MIN_SEGMENT_BYTES: Final = 1024 * 1024
_LEAST_WORKER_TIMEOUT: Final = 3.0
UNIX_PROXIES: Final = "unix:"
_SYSTEM_DIRECTORY: Final = Path("/var/cache/mirror")


def default_directory() -> Path:
    """Return the default cache directory: the system's for root, else that of the user."""
    if os.geteuid() == 0:
        return _SYSTEM_DIRECTORY
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mirror"
    except RuntimeError:  # a service account without a home
        return _SYSTEM_DIRECTORY


def size(text: str) -> SizeField:
    """Return the default value of a size."""
    return Size.parse(text)


def time(text: str) -> DurationField:
    """Return the default value of a time."""
    return Duration.parse(text)


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


def _in_bytes(size: Size) -> Size:
    if size.share is not None or size.bytes <= 0:
        raise ValueError("a size above zero such as 512MiB or 50GiB")
    return size


def _unshared(size: Size) -> Size:
    if size.share is not None:
        raise ValueError("bytes per second such as 50MiB, or 0 for as fast as it goes")
    return size


def _worth_a_request(size: Size) -> Size:
    if size.bytes < _MIN_SEGMENT_BYTES:
        raise ValueError("a size of 1MiB or more, such as 16MiB")
    return size


def _in_shares(size: Size) -> Size:
    if not size.share:
        raise ValueError("a share above zero such as 50%")
    return size


def _above_zero(duration: Duration) -> Duration:
    if duration.seconds <= 0:
        raise ValueError("a time above zero")
    return duration


def _some_beats(duration: Duration) -> Duration:
    if 0 < duration.seconds < _LEAST_WORKER_TIMEOUT:
        raise ValueError("a time of 3s or more, or 0s for never")
    return duration


def _readable(file: str) -> str:
    try:
        if file:
            Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no UTF-8"
        raise ValueError(f"a text file that can be read ({reason})") from error
    return file


def _somewhere(places: tuple[str, ...]) -> tuple[str, ...]:
    if not places:
        raise ValueError("at least one place to listen, such as 0.0.0.0:5000")
    return places


def _as_written(places: tuple[str, ...]) -> str | list[str]:
    return places[0] if len(places) == 1 else list(places)


Listen = Annotated[
    tuple[Annotated[str, AfterValidator(checked_listen)], ...],
    BeforeValidator(listed),
    AfterValidator(_somewhere),
    PlainSerializer(_as_written),
]
Proxy = Annotated[str, AfterValidator(checked_proxy)]
ReadableFile = Annotated[str, AfterValidator(_readable)]
Timeout = Annotated[DurationField, AfterValidator(_above_zero)]
WorkerTimeout = Annotated[DurationField, AfterValidator(_some_beats)]
Directory = Annotated[Path, AfterValidator(_checked_directory)]
Network = Annotated[str, AfterValidator(_checked_network)]
ProxyNetwork = Annotated[str, AfterValidator(_checked_proxy_network)]
Bytes = Annotated[SizeField, AfterValidator(_in_bytes)]
Rate = Annotated[SizeField, AfterValidator(_unshared)]
Share = Annotated[SizeField, AfterValidator(_in_shares)]
Segment = Annotated[SizeField, AfterValidator(_worth_a_request)]
