"""Proxy mode: builds its parts, and serves its sockets."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Final
from urllib.parse import urlsplit

from mirror import clients
from mirror.api.handlers import RegistryHandler
from mirror.config.addresses import TcpAddress
from mirror.config.model import Config, UpstreamConfig
from mirror.config.policy import governed_upstreams
from mirror.http.response_cache import ResponseCache
from mirror.http.server import Server
from mirror.http.server_options import PROXY
from mirror.metrics.metrics import Metrics
from mirror.oci.image_glob import FullName
from mirror.proxy.handler import ProxyHandler
from mirror.proxy.passthrough import Passing, Pushes
from mirror.proxy.permission import Destination, Permission, parse_rule
from mirror.proxy.registries import Registries
from mirror.proxy.tunnel import Connector
from mirror.pull.refusals import Question
from mirror.server.listeners import ACCEPTED_AT_ONCE, Listener
from mirror.server.open_files import bounds
from mirror.server.store import Store
from mirror.server.upstreams import general_proxies, upstream_proxies
from mirror.store.interface import link_name
from mirror.store.local.layout import Layout
from mirror.upstream.endpoints import Endpoints
from mirror.upstream.proxies import Proxies, Proxy
from mirror.upstream.routing import Target, is_limited
from mirror.user_error import UserError

_PATIENCE_SECONDS: Final = 5.0
_PUSH_SECONDS: Final = 3600.0  # covers clock skew and requests in flight

Pushed = Callable[[Target, str], Awaitable[None]]


def opened_pushes(config: Config, layout: Layout) -> Pushes | None:
    """The memory of pushes; None if proxy mode is off, since pushes come only through it."""
    tags = config.tags
    believed = max(tags.max_age.seconds, tags.negative_max_age.seconds)
    return Pushes(layout.pushed, believed + _PUSH_SECONDS) if config.proxy.listen else None


def note_of(pushes: Pushes, store: Store, table: ResponseCache) -> Pushed:
    """Return the function to call after a push: it makes records of the repository stale."""

    async def pushed(target: Target, reference: str) -> None:
        pushes.note(target.record)
        image = FullName(target.upstream, target.repository, reference)
        await store.listings.forget(Question(target, "manifest", reference, reference).missing)
        link = await store.tags.lookup(link_name(image))
        if link is not None:
            table.forget(link.descriptor.digest)

    return pushed


def proxy_handler(
    config: Config,
    handler: RegistryHandler,
    registries: Mapping[str, Endpoints],
    metrics: Metrics,
    pushed: Pushed,
) -> ProxyHandler:
    """The handler for clients that use the mirror as their proxy.

    Raises:
        UserError: the CA cannot be used.
    """
    # Imported late: it costs 8 MiB, which mirrors without proxy mode should not pay.
    from mirror.ca import CertificateIssuer, ensure_authority  # noqa: PLC0415

    proxy = config.proxy
    _check_loop(config)
    directory, former = proxy.authority_directories(config.cache.directory)
    name = f"mirror CA ({socket.gethostname()})"
    authority = ensure_authority(directory, name, former=former)
    known = frozenset(name for name, upstream in config.enabled().items() if upstream.username)
    patience = min(config.fetch.first_byte_timeout.seconds, _PATIENCE_SECONDS)
    passing = Passing(registries, handler.sender, config.limits.stall_timeout.seconds)
    return ProxyHandler(
        handler.directory,
        Registries(handler, passing, known, pushed, patience),
        CertificateIssuer(authority),
        _permission(config),
        Connector(config.fetch.connect_timeout.seconds, parent=_parent_by(general_proxies(config))),
        *(bounds(config).tunnels, proxy.idle_timeout.seconds, metrics),
    )


def _check_loop(config: Config) -> None:
    """Check that the mirror is not its own proxy, which would send its requests to itself.

    Raises:
        UserError: it is.
    """
    listening = [each for each in config.proxy.addresses() if isinstance(each, TcpAddress)]
    ports = {address.port for address in listening}
    hosts = {socket.gethostname(), *(address.host for address in listening)}
    tables = [
        general_proxies(config),
        *(upstream_proxies(config, each) for each in config.enabled()),
    ]
    for proxy in (proxy for table in tables for proxy in table.by_scheme.values()):
        host = proxy.url.host or ""
        if proxy.url.port in ports and (host in hosts or clients.is_loopback(host)):
            text = f"{proxy.source} leads to this mirror's own proxy: name another, or none"
            raise UserError(text)


def _parent_by(proxies: Proxies) -> Callable[[Destination], Proxy | None]:
    """The function that finds the parent proxy to a server, the same as for upstreams."""
    return lambda destination: proxies.lookup("https", destination.host, destination.port)


def _permission(config: Config) -> Permission:
    barred: set[str] = set()
    limited: set[str] = set()
    governed = governed_upstreams(config)
    for name, upstream in config.upstreams.items():
        if not upstream.enabled:
            barred |= _hosts(name, upstream)
        elif is_limited(upstream.allow, upstream.deny) or name in governed:
            limited |= _hosts(name, upstream)
    return Permission(
        [parse_rule(text) for text in config.proxy.allow],
        config.proxy.private,
        frozenset(barred),
        near=not config.access.networks,
        limited=frozenset(limited),
    )


def _hosts(name: str, upstream: UpstreamConfig) -> set[str]:
    """The host names of a registry, from its names and its URL."""
    names = (name, *upstream.aliases, *upstream.hosts, urlsplit(upstream.url).netloc)
    return {host for text in names if (host := urlsplit(f"//{text}").hostname)}


@asynccontextmanager
async def listening(server: Server, listeners: Iterable[Listener]) -> AsyncIterator[None]:
    loop = asyncio.get_running_loop()
    opened: list[asyncio.Server] = []
    try:
        for listener in listeners:
            handler = partial(server.connection, PROXY)
            opening = loop.create_server(handler, sock=listener.raw, backlog=ACCEPTED_AT_ONCE)
            opened.append(await opening)  # each closes if a later one fails
            listener.queue_many()
        yield
    finally:
        for each in opened:
            each.close()
