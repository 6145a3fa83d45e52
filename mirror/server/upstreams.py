"""Builds the upstreams with their proxies, and the table of their names."""

import os
import ssl
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from yarl import URL

from mirror import __version__
from mirror.config.addresses import split_upstream
from mirror.config.model import Config, UpstreamConfig
from mirror.shares import Rooms
from mirror.trouble import Problem
from mirror.ttl_cache import TtlCache
from mirror.upstream.auth import Authenticator, Authorization, Verbatim
from mirror.upstream.endpoints import Endpoints
from mirror.upstream.login import Login, OwnLogin, Principal, SharedLogin
from mirror.upstream.proxies import (
    InvalidProxyError,
    Proxies,
    configured_proxies,
    environment_proxies,
)
from mirror.upstream.quirks import quirks_of
from mirror.upstream.registry import Registry
from mirror.upstream.responses import Pace
from mirror.upstream.routing import Names, Router, UnknownRegistryError
from mirror.upstream.sessions import TransportSettings, trusting
from mirror.upstream.transport import Observer, Transport
from mirror.user_error import UserError

if TYPE_CHECKING:
    from mirror.cluster.values import SharedCaches

_TOKENS: Final = 10_000
_TOKENS_BYTES: Final = 8 * 1024 * 1024
#: Settings of an upstream used by other parts: they do not affect how it is reached.
_ELSEWHERE: Final = frozenset(
    {"enabled", "default", "hosts", "aliases", "library", "allow", "deny", "max_connections"}
)


def upstream_proxies(config: Config, name: str) -> Proxies:
    """The proxies for an upstream, its token service and its redirects.

    Raises:
        UserError: a proxy named in the environment cannot be used.
    """
    if own := config.upstreams[name].proxy:
        return configured_proxies(own, f'[upstreams."{name}"] proxy')
    return general_proxies(config)


def general_proxies(config: Config) -> Proxies:
    """The proxies for upstreams without their own.

    Raises:
        UserError: a proxy named in the environment cannot be used.
    """
    if config.fetch.proxy:
        return configured_proxies(config.fetch.proxy, "[fetch] proxy")
    return from_environment()


def from_environment() -> Proxies:
    """The proxies named in the environment of this process.

    Raises:
        UserError: one of them cannot be used.
    """
    try:
        return environment_proxies(os.environ)
    except InvalidProxyError as error:
        raise UserError(str(error)) from error


def named_proxies(config: Config) -> list[str]:
    """Every proxy to an upstream, each once, as text for people.

    Raises:
        UserError: a proxy named in the environment cannot be used.
    """
    tables = [upstream_proxies(config, name) for name in config.enabled()]
    named = (str(proxy) for table in tables for proxy in table.by_scheme.values())
    return list(dict.fromkeys(named))


@dataclass(slots=True)
class _Open:
    """An open upstream, and how many configurations use it; ``way``: how it is reached."""

    way: Any
    endpoints: Endpoints
    opened: AsyncExitStack
    users: int = 0


class _Known(dict[str, Endpoints]):
    """Upstreams by name; a proxy connection may outlive the upstream it was made for."""

    def __missing__(self, name: str) -> Endpoints:
        raise UnknownRegistryError(name)


class Upstreams:
    """Every upstream that some configuration uses.

    If the next configuration reaches an upstream in the same way, it inherits the upstream with its
    connections, tokens and state (unreachable, or rate limited).
    """

    def __init__(self, observer: Observer, rooms: Rooms) -> None:
        self._observer = observer
        self._rooms = rooms
        self._open: list[_Open] = []

    def problems(self) -> list[Problem]:
        return [problem for each in self._open for problem in each.endpoints.log.problems()]

    @asynccontextmanager
    async def used(
        self, config: Config, caches: "SharedCaches | None" = None
    ) -> AsyncIterator[Mapping[str, Endpoints]]:
        """The upstreams of a configuration by name; an upstream closes after its last user.

        ``caches``: what the mirrors of a cluster share.

        Raises:
            UserError: a password or CA file cannot be used.
        """
        async with AsyncExitStack() as stack:
            yield _Known(
                {
                    name: await stack.enter_async_context(
                        self._used(name, upstream, config, caches)
                    )
                    for name, upstream in config.enabled().items()
                }
            )

    @asynccontextmanager
    async def _used(
        self, name: str, upstream: UpstreamConfig, config: Config, caches: "SharedCaches | None"
    ) -> AsyncIterator[Endpoints]:
        way = (_way(name, upstream, config), caches)
        found = next((each for each in self._open if each.way == way), None)
        if found is None:
            shared = None
            if caches is not None:
                shared = caches.login(name, upstream.username, _secret(name, upstream))
            self._observer.upstream_login(name, False)  # not known of the new login
            parts = (name, upstream, config, self._observer, self._rooms, shared)
            stack = AsyncExitStack()
            found = _Open(way, await stack.enter_async_context(_opened_upstream(*parts)), stack)
            self._open.append(found)
        found.users += 1
        try:
            yield found.endpoints
        finally:
            found.users -= 1
            if not found.users:
                self._open.remove(found)
                await found.opened.aclose()


def _way(name: str, upstream: UpstreamConfig, config: Config) -> Any:
    """All settings that decide how an upstream is reached, for comparison.

    Raises:
        UserError: its password or CA file cannot be read.
    """
    with _using_ca_files(name):
        trust = trusting(_ca_files(config, upstream))  # equal while the files are unchanged
    table = upstream.model_dump(exclude=set(_ELSEWHERE))
    return (name, table, _secret(name, upstream), config.fetch, trust)


def check_upstreams(config: Config) -> None:
    """Check that all upstreams can be opened.

    Raises:
        UserError: a password or CA file cannot be used.
    """
    for name, upstream in config.enabled().items():
        _way(name, upstream, config)


@asynccontextmanager
async def _opened_upstream(
    name: str,
    upstream: UpstreamConfig,
    config: Config,
    observer: Observer,
    rooms: Rooms,
    shared: SharedLogin | None,
) -> AsyncIterator[Endpoints]:
    """Open an upstream with its mirrors.

    Raises:
        UserError: its password or CA file cannot be used.
    """
    tokens: TtlCache[str] = TtlCache(0, _TOKENS, _TOKENS_BYTES)  # each has its own ttl
    # The credentials belong to the registry: its mirrors are asked anonymously.
    mirrors = [(url, Login()) for url in upstream.mirrors]
    addresses = [*mirrors, (upstream.url, _login(name, upstream, observer))]
    settings = _transport_settings(name, config, upstream)
    rate = upstream.max_rate.bytes
    pace = Pace(rate) if rate else None
    async with AsyncExitStack() as stack:
        registries = list[Registry]()
        for address, login in addresses:
            root, prefix = split_upstream(address)
            url = URL(root)
            transport = Transport(name, url.host or "", settings, observer)
            with _using_ca_files(name):
                await stack.enter_async_context(transport)
            authorization = Authorization(*(name, url, transport, tokens, login), shared=shared)
            max_bytes = config.fetch.max_blob_size.bytes
            registries.append(
                Registry(
                    *(name, url, transport, authorization, observer),
                    *(rooms, max_bytes, pace),
                    prefix=prefix,
                    replaceable=len(registries) < len(upstream.mirrors),
                )
            )
        # The last one is the registry itself, to which the credentials of clients belong.
        yield Endpoints(
            name,
            registries,
            lambda principal: _authenticator(principal, name, url, transport, tokens),
        )


def _login(name: str, upstream: UpstreamConfig, observer: Observer) -> Login:
    if not upstream.username:
        keys = f'username and password of [upstreams."{name}"]'
        return Login(advice=f"; a login may raise the limit: set {keys}")
    _secret(name, upstream)  # readable at the start
    key = "password_file" if upstream.password_file else "password"
    hint = quirks_of(name, urlsplit(upstream.url).hostname).login_hint
    keys = f'username and {key} of [upstreams."{name}"]' + (f" ({hint})" if hint else "")
    told = partial(observer.upstream_login, name)
    return OwnLogin(name, upstream.username, upstream.secret, keys, told)


def _authenticator(
    principal: Principal, name: str, url: URL, transport: Transport, tokens: TtlCache[str]
) -> Authenticator:
    """How a client with its own credentials authenticates to the registry at ``url``."""
    credentials = principal.credentials()
    if credentials is None:
        return Verbatim(name, transport, principal)
    return Authorization(name, url, transport, tokens, Login(credentials), principal.identity)


@contextmanager
def _using_ca_files(name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:  # ssl.SSLError is one
        broken = isinstance(error, ssl.SSLError)
        reason = "it holds no certificate (PEM)" if broken else error.strerror
        text = f"upstream {name}: ca_file cannot be used: {reason}"
        raise UserError(text) from error


def _ca_files(config: Config, upstream: UpstreamConfig) -> tuple[str, ...]:
    return tuple(file for file in (config.fetch.ca_file, upstream.ca_file) if file)


def _secret(name: str, upstream: UpstreamConfig) -> str:
    try:
        return upstream.secret()
    except OSError as error:
        raise UserError(f"upstream {name}: password_file: {error.strerror}") from error


def _transport_settings(name: str, config: Config, upstream: UpstreamConfig) -> TransportSettings:
    return TransportSettings(
        connect_timeout=config.fetch.connect_timeout.seconds,
        first_byte_timeout=config.fetch.first_byte_timeout.seconds,
        idle_timeout=config.fetch.idle_timeout.seconds,
        proxies=upstream_proxies(config, name),
        private_redirects=upstream.private_redirects,
        http_redirects=upstream.http_redirects,
        ca_files=_ca_files(config, upstream),
        user_agent=f"mirror/{__version__}",
    )


def directory(config: Config) -> Router:
    names = [
        Names(
            name,
            upstream.aliases,
            upstream.hosts,
            upstream.library,
            upstream.allow,
            upstream.deny,
            _place(upstream.url),
        )
        for name, upstream in config.enabled().items()
    ]
    return Router(names, config.default_upstream())


def _place(url: str) -> str:
    """Host and port of the registry for clients; empty if its URL has a path."""
    parts = urlsplit(url)
    return "" if parts.path.strip("/") else parts.netloc
