"""The upstreams and all their names."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from urllib.parse import urlsplit

from yarl import URL

from mirror import __version__
from mirror.app.errors import StartError
from mirror.config.model import Config, UpstreamConfig
from mirror.ephemeral.backend import Backend
from mirror.ephemeral.tokens import Tokens
from mirror.upstream.answers import Pace
from mirror.upstream.authorization import (
    Authorization,
    Credentials,
    Introduction,
    TokenRules,
)
from mirror.upstream.directory import Directory, Names
from mirror.upstream.endpoints import Endpoints
from mirror.upstream.gate import Gate
from mirror.upstream.registry import Registry
from mirror.upstream.transport import Observer, Transport, TransportSettings
from mirror.upstream.visitor import Verbatim, Visitor


@asynccontextmanager
async def opened_upstream(
    name: str, upstream: UpstreamConfig, config: Config, backend: Backend, observer: Observer
) -> AsyncIterator[Endpoints]:
    """Open an upstream with its mirrors.

    Raises:
        StartError: its password or CA file cannot be used.
    """
    try:
        credentials = (
            Credentials(upstream.username, upstream.secret()) if upstream.username else None
        )
    except OSError as error:
        raise StartError(f"upstream {name}: password_file: {error.strerror}") from error
    # The credentials are the registry's: a mirror of it is asked as nobody.
    addresses = [*((url, None) for url in upstream.mirrors), (upstream.url, credentials)]
    settings = _transport_settings(config, upstream)
    rate = upstream.max_rate.bytes
    pace = Pace(rate) if rate else None
    max_age = config.access.grant_max_age.seconds
    async with AsyncExitStack() as stack:
        registries = []
        for address, known_as in addresses:
            url = URL(address)
            transport = Transport(name, url.host or "", settings, observer)
            try:
                await stack.enter_async_context(transport)
            except OSError as error:  # ssl.SSLError is one
                text = f"upstream {name}: ca_file holds no certificate: {error}"
                raise StartError(text) from error
            tokens = Tokens(backend)
            authorization = Authorization(name, url, transport, tokens, known_as)
            max_bytes = config.fetch.max_blob_size.bytes
            gate = Gate(name)
            registries.append(
                Registry(name, url, transport, authorization, gate, observer, max_bytes, pace)
            )
        # The last one is the registry itself, whose credentials a visitor's are.
        yield Endpoints(
            name,
            registries,
            lambda visitor: _introduction(visitor, name, url, transport, tokens, max_age),
        )


def _introduction(
    visitor: Visitor, name: str, url: URL, transport: Transport, tokens: Tokens, max_age: float
) -> Introduction:
    """Who a visitor is to the registry at ``url``."""
    credentials = visitor.credentials()
    if credentials is None:
        return Verbatim(visitor)
    rules = TokenRules(visitor.identity, max_age)
    return Authorization(name, url, transport, tokens, credentials, rules)


def _transport_settings(config: Config, upstream: UpstreamConfig) -> TransportSettings:
    return TransportSettings(
        connect_timeout=config.fetch.connect_timeout.seconds,
        first_byte_timeout=config.fetch.first_byte_timeout.seconds,
        idle_timeout=config.fetch.idle_timeout.seconds,
        proxy=upstream.proxy or config.fetch.proxy,
        private_redirects=upstream.private_redirects,
        ca_files=tuple(file for file in (config.fetch.ca_file, upstream.ca_file) if file),
        user_agent=f"mirror/{__version__}",
    )


def directory(config: Config) -> Directory:
    """All names of all upstreams."""
    names = [
        Names(
            name,
            upstream.aliases,
            upstream.hosts,
            upstream.library,
            upstream.allow,
            upstream.deny,
            urlsplit(upstream.url).netloc,
        )
        for name, upstream in config.enabled().items()
    ]
    return Directory(names, config.default_upstream())
