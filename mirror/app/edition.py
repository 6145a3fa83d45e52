"""All that is made of one configuration: from the upstreams up to what receives clients.

What outlives a configuration is the ground it stands on: store, figures, sockets.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Final

from mirror import __version__
from mirror.app.door import opened_admission, proxies, server_limits
from mirror.app.proxy import proxy_face
from mirror.app.pulls import opened_pulls
from mirror.app.store import Store
from mirror.app.teller import UpstreamTeller
from mirror.app.upstreams import directory, opened_upstream
from mirror.bookkeeper import Bookkeeper
from mirror.config.model import Config
from mirror.ephemeral.backend import Backend
from mirror.metrics import Metrics
from mirror.store.database import IndexUnavailableError
from mirror.web.health import Condition, HealthFace
from mirror.web.hot import HotTable
from mirror.web.proxy.face import ProxyFace
from mirror.web.reception import Reception
from mirror.web.registry import RegistryFace
from mirror.web.routes import Routes
from mirror.web.sending import Sender
from mirror.web.status import StatusFace

_EPHEMERAL_KEYS: Final = 100_000
_SENDING_THREADS: Final = 16  # more than cores: one may wait for a page that is still on the disk


@dataclass(frozen=True, slots=True)
class Ground:
    """What stays while configurations come and go; ``stopping``: the mirror is about to end."""

    store: Store
    metrics: Metrics
    books: Bookkeeper
    table: HotTable
    stopping: asyncio.Event


@asynccontextmanager
async def opened_edition(config: Config, ground: Ground) -> AsyncIterator[Reception]:
    """What receives clients as ``config`` says.

    Raises:
        StartError: something that it names cannot be used.
    """
    async with _opened_routes(config, ground) as (routes, proxy):
        with opened_admission(config) as admission:
            table = ground.table if config.server.hot else None
            limits = server_limits(config)
            yield Reception(routes, admission, proxies(config), limits, table, proxy)


@asynccontextmanager
async def _opened_routes(
    config: Config, ground: Ground
) -> AsyncIterator[tuple[Routes, ProxyFace | None]]:
    backend = Backend(_EPHEMERAL_KEYS)
    teller = UpstreamTeller(ground.metrics, ground.books)
    async with AsyncExitStack() as stack:
        registries = {
            name: await stack.enter_async_context(
                opened_upstream(name, upstream, config, backend, teller)
            )
            for name, upstream in config.enabled().items()
        }
        pulls = await stack.enter_async_context(
            opened_pulls(config, registries, ground.store, backend, ground.metrics, ground.books)
        )
        threads = stack.enter_context(ThreadPoolExecutor(_SENDING_THREADS, "send"))
        sender = Sender(threads, config.limits.stall_timeout.seconds)
        face = RegistryFace(
            directory(config),
            pulls.blobs,
            pulls.manifests,
            pulls.listings,
            sender,
            pulls.visiting,
        )
        status = StatusFace(__version__, tuple(config.enabled()), config.default_upstream())
        proxy = proxy_face(config, face, registries, ground.metrics)
        yield Routes(face, _health(ground), status), proxy


def _health(ground: Ground) -> HealthFace:
    store, metrics = ground.store, ground.metrics

    def condition() -> Condition:
        if ground.stopping.is_set():
            return Condition(False, "stopping")
        trouble = store.objects.alarm.reason
        # A mirror that keeps nothing still serves: taking it out of service would break pulls.
        return Condition(True, f"ready, but nothing is kept: {trouble}" if trouble else "ready")

    async def figures() -> tuple[bytes, str]:
        with contextlib.suppress(OSError, IndexUnavailableError):  # then: as last known
            usage = await store.objects.usage()
            metrics.cache_holds(usage.used_bytes, usage.objects, usage.max_bytes)
        return metrics.rendered()

    return HealthFace(condition, figures)
