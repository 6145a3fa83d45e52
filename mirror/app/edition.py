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
from mirror.app.store import Store
from mirror.app.teller import UpstreamTeller
from mirror.app.upstreams import directory, opened_upstream
from mirror.bookkeeper import Bookkeeper
from mirror.config.model import Config
from mirror.ephemeral.backend import Backend
from mirror.ephemeral.freshness import Freshness
from mirror.ephemeral.negative import Negatives
from mirror.ephemeral.pages import Pages
from mirror.metrics import Metrics
from mirror.pull.ahead import Ahead
from mirror.pull.blobs import BlobPulls
from mirror.pull.listings import ListingPulls
from mirror.pull.manifests import ManifestPulls
from mirror.pull.policy import AHEAD_SHARE, Splitting
from mirror.pull.slots import SlotLimits, Slots
from mirror.store.database import IndexUnavailableError
from mirror.web.health import Condition, HealthFace
from mirror.web.hot import HotTable
from mirror.web.reception import Reception
from mirror.web.registry import RegistryFace
from mirror.web.routes import Routes
from mirror.web.sending import Sender
from mirror.web.status import StatusFace

_EPHEMERAL_KEYS: Final = 100_000
_PAGES: Final = 1_000
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
    async with _opened_routes(config, ground) as routes:
        with opened_admission(config) as admission:
            table = ground.table if config.server.hot else None
            yield Reception(routes, admission, proxies(config), server_limits(config), table)


@asynccontextmanager
async def _opened_routes(config: Config, ground: Ground) -> AsyncIterator[Routes]:
    store, metrics = ground.store, ground.metrics
    backend = Backend(_EPHEMERAL_KEYS)
    negatives = Negatives(backend, config.tags.negative_max_age.seconds)
    max_age = config.tags.max_age.seconds
    teller = UpstreamTeller(metrics, ground.books)
    async with AsyncExitStack() as stack:
        registries = {
            name: await stack.enter_async_context(
                opened_upstream(name, upstream, config, backend, teller)
            )
            for name, upstream in config.enabled().items()
        }
        limits = config.limits
        slots = _slots(config)
        ahead = Ahead(AHEAD_SHARE / config.server.processes())
        blobs = BlobPulls(registries, store.blobs, negatives, metrics, slots, ahead)
        manifests = ManifestPulls(
            registries,
            store.manifests,
            store.tags,
            Freshness(backend, max_age),
            negatives,
            metrics,
            config.tags.stale_if_error.seconds,
        )
        listings = ListingPulls(registries, Pages(Backend(_PAGES), max_age), negatives)
        for pulls in (blobs, manifests, listings):
            stack.push_async_callback(pulls.close)
        stack.enter_context(ground.books.watching(blobs))
        threads = stack.enter_context(ThreadPoolExecutor(_SENDING_THREADS, "send"))
        sender = Sender(threads, limits.stall_timeout.seconds)
        yield Routes(
            RegistryFace(directory(config), blobs, manifests, listings, sender),
            _health(ground),
            StatusFace(__version__, tuple(config.enabled()), config.default_upstream()),
        )


def _slots(config: Config) -> Slots:
    limits, fill = config.limits, config.fill
    connections = {name: upstream.max_connections for name, upstream in config.enabled().items()}
    return Slots(
        SlotLimits(limits.downloads, limits.queue, limits.queue_timeout.seconds, connections),
        Splitting(fill.connections, fill.segment.bytes, fill.parallel_from.bytes),
    )


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
