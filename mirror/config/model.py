"""The tree of the configuration: all keys, with their defaults and types."""

import os
import re
from pathlib import Path
from typing import Annotated, Final, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, NonNegativeInt, PositiveInt, SecretStr, model_validator

from mirror.config.addresses import Address, checked_name, checked_upstream, parse_listen
from mirror.config.cluster import ClusterConfig
from mirror.config.fields import (
    Bytes,
    Directory,
    DurationField,
    Listen,
    Network,
    OptionalListen,
    Proxy,
    ProxyNetwork,
    Rate,
    ReadableFile,
    Segment,
    Share,
    Size,
    SizeField,
    Table,
    Timeout,
    WorkerTimeout,
    default_directory,
    size,
    state_directory,
    time,
    where,
)
from mirror.config.policy import BlockRule, KeepRule, PinRule, PolicyRule
from mirror.config.warm import WarmConfig

_PROXY_DIRECTORY: Final = "proxy"  # below the cache directory (0.2.0 and before)
_MODE: Final = re.compile(r"0?[0-7]{3}", re.ASCII)
_TRACES: Final = "/v1/traces"  # OTLP/HTTP's path
_GLOB: Final = re.compile(
    r"(?:\[[0-9a-f:.*]+\]|[a-z0-9_.*?-]+)(?::(?:[0-9]{1,5}|\*))?", re.ASCII | re.IGNORECASE
)


class ProxyConfig(Table):
    """The addresses of the proxy, and the other servers that clients may reach through it."""

    listen: OptionalListen = ()
    ca_directory: str = ""
    allow: tuple[
        Annotated[
            str,
            where(
                _GLOB.fullmatch,
                'a host such as "auth.docker.io", "*.example.com" or "git.lan:8443"',
            ),
        ],
        ...,
    ] = ("*",)
    private: bool = False
    tunnels: PositiveInt = 1_000
    idle_timeout: Timeout = time("10m")

    def addresses(self) -> list[Address]:
        """Return the addresses to listen at; empty if the proxy is off."""
        return [parse_listen(text) for text in self.listen]

    def authority_directories(self, cache: Path) -> tuple[Path, Path | None]:
        """Return the directory of the CA, and that of 0.2.0 and before if it may be there.

        ``cache`` is the cache directory.
        """
        if self.ca_directory:
            return Path(self.ca_directory).expanduser().absolute(), None
        return state_directory(cache).absolute(), cache.absolute() / _PROXY_DIRECTORY


def _checked_endpoint(text: str) -> str:
    if not text:
        return text
    try:
        parts = urlsplit(text)
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or parts.query or parts.fragment:
        raise ValueError("an http or https address such as http://localhost:4318")
    if "@" in parts.netloc:
        raise ValueError("an address without a password (OTEL_EXPORTER_OTLP_HEADERS takes one)")
    return text


class TracingConfig(Table):
    """The collector of spans, and the share of requests to trace."""

    endpoint: Annotated[str, AfterValidator(_checked_endpoint)] = ""
    sample: Annotated[
        float,
        where(lambda share: 0 <= share <= 1, "a share between 0 and 1, such as 0.1"),  # no NaN
    ] = 1.0
    service: str = "mirror"

    def address(self) -> str:
        """Return the endpoint; OTLP's path is added if it has no path."""
        parts = urlsplit(self.endpoint)
        return self.endpoint if parts.path.strip("/") else parts._replace(path=_TRACES).geturl()


class ServerConfig(Table):
    """How clients reach the mirror."""

    listen: Listen = ("0.0.0.0:5000",)
    metrics_listen: OptionalListen = ()
    socket_mode: Annotated[
        str,
        where(_MODE.fullmatch, 'a mode in octal digits such as "0660" or "0666"'),
    ] = "0666"
    lame_duck: DurationField = time("5s")
    drain: DurationField = time("30s")
    workers: NonNegativeInt = 1
    worker_timeout: WorkerTimeout = time("30s")
    hot: bool = True
    trusted_proxies: tuple[ProxyNetwork, ...] = ()
    tls_certificate: ReadableFile = ""
    tls_key: ReadableFile = ""

    @model_validator(mode="after")
    def _check_tls(self) -> Self:
        if bool(self.tls_certificate) != bool(self.tls_key):
            raise ValueError("tls_certificate and tls_key, both or neither")
        return self

    def processes(self) -> int:
        """Return the number of processes: ``workers``, or the number of cores if that is 0."""
        return self.workers or len(os.sched_getaffinity(0))

    def addresses(self) -> list[Address]:
        return [parse_listen(text) for text in self.listen]

    def metrics_addresses(self) -> list[Address]:
        """Return the addresses for metrics and health only; empty if there are none."""
        return [parse_listen(text) for text in self.metrics_listen]


class AccessConfig(Table):
    """Which clients may use the mirror."""

    networks: tuple[Network, ...] = ()
    htpasswd_file: ReadableFile = ""
    grant_max_age: Timeout = time("5m")


class LimitsConfig(Table):
    """Limits, so that many or slow clients do not disturb the others."""

    connections: PositiveInt = 10_000
    connections_per_client: PositiveInt = 1_000
    downloads: PositiveInt = 100
    questions: PositiveInt = 200
    answers: Bytes = size("64MiB")
    upstream_share: Share = size("75%")
    client_share: Share = size("50%")
    queue: NonNegativeInt = 1_000
    queue_timeout: Timeout = time("20s")
    idle_timeout: Timeout = time("75s")
    stall_timeout: Timeout = time("5m")


class LogConfig(Table):
    """The log on standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["text", "json"] = "text"
    access: bool = True


class CacheConfig(Table):
    """The directory and the limits of the cache."""

    directory: Directory = Field(default_factory=default_directory)
    max_size: SizeField = size("50GiB")
    min_free: SizeField = size("2%")
    scrub: DurationField = time("0s")
    max_age: DurationField = time("0s")


class TagsConfig(Table):
    """How long an answer of upstream for a tag is used."""

    max_age: DurationField = time("60s")
    stale_if_error: DurationField = time("30d")
    negative_max_age: DurationField = time("10s")


class FetchConfig(Table):
    """How upstreams are reached."""

    connect_timeout: Timeout = time("10s")
    first_byte_timeout: Timeout = time("30s")
    idle_timeout: Timeout = time("60s")
    max_blob_size: Bytes = size("100GiB")
    proxy: Proxy = ""
    ca_file: ReadableFile = ""


class FillConfig(Table):
    """How a blob is downloaded into the cache."""

    connections: PositiveInt = 4
    segment: Segment = size("16MiB")
    parallel_from: Bytes = size("64MiB")
    prefetch: bool = True


class UpstreamConfig(Table):
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
    http_redirects: bool = False
    allow: tuple[str, ...] = ("**",)
    deny: tuple[str, ...] = ()
    max_connections: PositiveInt = 100
    max_rate: Rate = size("0")
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
        """Return the password, read from ``password_file`` if that is set.

        Raises:
            OSError: the file cannot be read.
        """
        if self.password_file:
            return Path(self.password_file).read_text(encoding="utf-8").rstrip("\r\n")
        return self.password.get_secret_value()


class Config(Table):
    """The whole configuration."""

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
    cluster: ClusterConfig = ClusterConfig()
    keep: tuple[KeepRule, ...] = ()
    block: tuple[BlockRule, ...] = ()
    policy: tuple[PolicyRule, ...] = ()
    pin: tuple[PinRule, ...] = ()
    warm: tuple[WarmConfig, ...] = ()
    upstreams: dict[Annotated[str, AfterValidator(checked_name)], UpstreamConfig] = {}

    def enabled(self) -> dict[str, UpstreamConfig]:
        return {name: upstream for name, upstream in self.upstreams.items() if upstream.enabled}

    def share(self, workers: int) -> Self:
        """Return the configuration of one of ``workers`` processes: its part of each limit."""

        def part(amount: int) -> int:
            return -(-amount // workers)

        limits = self.limits.model_copy(
            update={
                "connections": part(self.limits.connections),
                "downloads": part(self.limits.downloads),
                "queue": part(self.limits.queue),
                "questions": part(self.limits.questions),
                "answers": Size.parse(part(self.limits.answers.bytes)),
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
        """Return the upstream for requests that name no registry."""
        return next(name for name, upstream in self.enabled().items() if upstream.default)
