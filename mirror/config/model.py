"""The tree of the configuration, with every default and what each key allows."""

import ipaddress
import os
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    NonNegativeInt,
    PlainSerializer,
    PositiveInt,
    SecretStr,
    model_validator,
)

from mirror.config.addresses import checked_name, checked_proxy, checked_upstream
from mirror.config.keep import KeepRule
from mirror.config.listen import Address, checked_listen, checked_mode, listed, parse_listen
from mirror.config.proxy import ProxyConfig
from mirror.config.quantity import Duration, DurationField, Size, SizeField
from mirror.config.table import Table as _Table
from mirror.config.tracing import TracingConfig
from mirror.config.warm import WarmConfig

_MIN_SEGMENT_BYTES: Final = 1024 * 1024
_LEAST_WORKER_TIMEOUT: Final = 3.0
UNIX_PROXIES: Final = "unix:"
_SYSTEM_DIRECTORY: Final = Path("/var/cache/mirror")


def default_directory() -> Path:
    """Where the cache is when nobody says: the system's for root, else the user's own."""
    if os.geteuid() == 0:
        return _SYSTEM_DIRECTORY
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mirror"
    except RuntimeError:  # a service account without a home
        return _SYSTEM_DIRECTORY


def _size(text: str) -> SizeField:
    return Size.parse(text)


def _time(text: str) -> DurationField:
    return Duration.parse(text)


def _checked_directory(directory: Path) -> Path:
    try:
        expanded = directory.expanduser()
    except RuntimeError as error:
        raise ValueError("a directory (there is no such user)") from error
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
        raise ValueError(f"{error}, or {UNIX_PROXIES} for who comes by a unix socket") from error


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


class ServerConfig(_Table):
    """How clients reach the mirror."""

    listen: Listen = ("0.0.0.0:5000",)
    socket_mode: Annotated[str, AfterValidator(checked_mode)] = "0666"
    drain: DurationField = _time("30s")
    workers: NonNegativeInt = 1
    worker_timeout: Annotated[DurationField, AfterValidator(_some_beats)] = _time("30s")
    hot: bool = True
    trusted_proxies: tuple[Annotated[str, AfterValidator(_checked_proxy_network)], ...] = ()
    tls_certificate: ReadableFile = ""
    tls_key: ReadableFile = ""

    @model_validator(mode="after")
    def _check_tls(self) -> Self:
        if bool(self.tls_certificate) != bool(self.tls_key):
            raise ValueError("tls_certificate and tls_key, both or neither")
        return self

    def processes(self) -> int:
        """How many processes serve: ``workers``, or as many as there are cores."""
        return self.workers or len(os.sched_getaffinity(0))

    def addresses(self) -> list[Address]:
        """Where to listen."""
        return [parse_listen(text) for text in self.listen]


class AccessConfig(_Table):
    """Who may use the mirror."""

    networks: tuple[Annotated[str, AfterValidator(_checked_network)], ...] = ()
    htpasswd_file: ReadableFile = ""
    grant_max_age: Timeout = _time("5m")


class LimitsConfig(_Table):
    """How much at once, so that no crowd and no slow client is everybody's trouble."""

    connections: PositiveInt = 10_000
    connections_per_client: PositiveInt = 1_000
    downloads: PositiveInt = 100
    queue: NonNegativeInt = 1_000
    queue_timeout: Timeout = _time("20s")
    idle_timeout: Timeout = _time("75s")
    stall_timeout: Timeout = _time("5m")


class LogConfig(_Table):
    """What the mirror says on standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["text", "json"] = "text"
    access: bool = True


class CacheConfig(_Table):
    """Where and how much is kept."""

    directory: Annotated[Path, AfterValidator(_checked_directory)] = Field(
        default_factory=default_directory
    )
    max_size: SizeField = _size("50GiB")
    min_free: SizeField = _size("2%")
    scrub: DurationField = _time("0s")
    max_age: DurationField = _time("0s")


class TagsConfig(_Table):
    """How long upstream's word on a tag holds."""

    max_age: DurationField = _time("60s")
    stale_if_error: DurationField = _time("30d")
    negative_max_age: DurationField = _time("10s")


class FetchConfig(_Table):
    """How upstreams are reached."""

    connect_timeout: Timeout = _time("10s")
    first_byte_timeout: Timeout = _time("30s")
    idle_timeout: Timeout = _time("60s")
    max_blob_size: Annotated[SizeField, AfterValidator(_in_bytes)] = _size("100GiB")
    proxy: Proxy = ""
    ca_file: ReadableFile = ""


class FillConfig(_Table):
    """How a blob is downloaded into the cache."""

    connections: PositiveInt = 4
    segment: Annotated[SizeField, AfterValidator(_worth_a_request)] = _size("16MiB")
    parallel_from: Annotated[SizeField, AfterValidator(_in_bytes)] = _size("64MiB")


class UpstreamConfig(_Table):
    """One registry."""

    url: Annotated[str, AfterValidator(checked_upstream)]
    mirrors: tuple[Annotated[str, AfterValidator(checked_upstream)], ...] = ()
    enabled: bool = True
    default: bool = False
    username: str = ""
    password: SecretStr = SecretStr("")
    password_file: ReadableFile = ""
    client_credentials: bool = False
    hosts: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    library: bool = False
    private_redirects: bool = False
    allow: tuple[str, ...] = ("*",)
    deny: tuple[str, ...] = ()
    max_connections: PositiveInt = 100
    max_rate: Annotated[SizeField, AfterValidator(_unshared)] = _size("0")
    proxy: Proxy = ""
    ca_file: ReadableFile = ""

    @model_validator(mode="after")
    def _check_password(self) -> Self:
        if self.password_file and self.password.get_secret_value():
            raise ValueError("either password or password_file")
        if not self.username and (self.password_file or self.password.get_secret_value()):
            raise ValueError("a password with a username")
        return self

    def secret(self) -> str:
        """The password, from the file where one is named.

        Raises:
            OSError: the file cannot be read.
        """
        if self.password_file:
            return Path(self.password_file).read_text(encoding="utf-8").rstrip("\r\n")
        return self.password.get_secret_value()


class Config(_Table):
    """All of it."""

    server: ServerConfig = ServerConfig()
    access: AccessConfig = AccessConfig()
    proxy: ProxyConfig = ProxyConfig()
    limits: LimitsConfig = LimitsConfig()
    log: LogConfig = LogConfig()
    cache: CacheConfig = Field(default_factory=CacheConfig)
    tags: TagsConfig = TagsConfig()
    fetch: FetchConfig = FetchConfig()
    fill: FillConfig = FillConfig()
    tracing: TracingConfig = TracingConfig()
    keep: tuple[KeepRule, ...] = ()
    warm: tuple[WarmConfig, ...] = ()
    upstreams: dict[Annotated[str, AfterValidator(checked_name)], UpstreamConfig] = {}

    def enabled(self) -> dict[str, UpstreamConfig]:
        """The upstreams that are to be served, by name."""
        return {name: upstream for name, upstream in self.upstreams.items() if upstream.enabled}

    def share(self, workers: int) -> Self:
        """What one of so many processes may take of all that is bounded for the whole mirror."""

        def part(amount: int) -> int:
            return -(-amount // workers)

        limits = self.limits.model_copy(
            update={
                "connections": part(self.limits.connections),
                "downloads": part(self.limits.downloads),
                "queue": part(self.limits.queue),
            }
        )
        upstreams = {
            name: upstream.model_copy(
                update={
                    "max_connections": part(upstream.max_connections),
                    "max_rate": Size.parse(part(upstream.max_rate.bytes)),
                }
            )
            for name, upstream in self.upstreams.items()
        }
        proxy = self.proxy.model_copy(update={"tunnels": part(self.proxy.tunnels)})
        return self.model_copy(update={"limits": limits, "upstreams": upstreams, "proxy": proxy})

    def default_upstream(self) -> str:
        """The upstream that a plain ``/v2/<name>/`` means."""
        return next(name for name, upstream in self.enabled().items() if upstream.default)
