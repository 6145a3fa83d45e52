"""Proxy mode: what it is built of, and its sockets."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from urllib.parse import urlsplit

from mirror.app.errors import StartError
from mirror.app.sockets import BACKLOG, Listener
from mirror.authority.files import AuthorityError, ensure_authority
from mirror.authority.minting import Mint
from mirror.config.model import Config
from mirror.metrics import Metrics
from mirror.upstream.endpoints import Endpoints
from mirror.web.entry import PROXY
from mirror.web.proxy.connecting import Connector
from mirror.web.proxy.face import ProxyFace, TunnelLimits
from mirror.web.proxy.passing import Passing
from mirror.web.proxy.permission import Permission, parse_rule
from mirror.web.proxy.registries import Registries
from mirror.web.registry import RegistryFace
from mirror.web.server import Server


def proxy_face(
    config: Config, face: RegistryFace, registries: Mapping[str, Endpoints], metrics: Metrics
) -> ProxyFace | None:
    """What answers those whose proxy the mirror is; None where it is nobody's.

    Raises:
        StartError: the CA cannot be used.
    """
    proxy = config.proxy
    if not proxy.listen:
        return None
    directory = proxy.authority_directory(config.cache.directory).absolute()
    try:
        authority = ensure_authority(directory, f"mirror CA ({socket.gethostname()})")
    except AuthorityError as error:
        raise StartError(str(error)) from error
    known = frozenset(name for name, upstream in config.enabled().items() if upstream.username)
    passing = Passing(registries, face.sender, config.limits.stall_timeout.seconds)
    return ProxyFace(
        face.directory,
        Registries(face, passing, known),
        Mint(authority),
        _permission(config),
        Connector(config.fetch.connect_timeout.seconds),
        TunnelLimits(proxy.tunnels, proxy.idle_timeout.seconds),
        metrics,
    )


def _permission(config: Config) -> Permission:
    barred = frozenset(
        host
        for name, upstream in config.upstreams.items()
        if not upstream.enabled
        for text in (name, *upstream.aliases, urlsplit(upstream.url).netloc)
        if (host := urlsplit(f"//{text}").hostname)
    )
    rules = [parse_rule(text) for text in config.proxy.allow]
    return Permission(rules, config.proxy.private, barred, near=not config.access.networks)


@asynccontextmanager
async def listening(server: Server, listeners: Iterable[Listener]) -> AsyncIterator[None]:
    """Let those in whose proxy the mirror is, while the context is open."""
    loop = asyncio.get_running_loop()
    opened: list[asyncio.Server] = []
    try:
        for listener in listeners:
            handler = partial(server.connection, PROXY)
            opening = loop.create_server(handler, sock=listener.raw, backlog=BACKLOG)
            opened.append(await opening)  # so that what is open is closed, come what may
        yield
    finally:
        for each in opened:
            each.close()
