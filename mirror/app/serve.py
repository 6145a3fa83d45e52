"""Builds everything leaf to root, owns the order of start and stop."""

import asyncio
import contextlib
import gc
import math
import os
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Final

from aiohttp import web

from mirror import __version__
from mirror.app.door import certificate, listen, opened_admission, proxies, server_limits
from mirror.app.notify import supervised
from mirror.app.process import (
    allow_open_files,
    announce,
    heed,
    say_stopping,
    until_orphaned,
)
from mirror.app.sockets import Listener, opened_listeners
from mirror.app.store import Store, opened_store
from mirror.app.upstreams import directory, opened_upstream
from mirror.config.model import Config
from mirror.ephemeral.backend import Backend
from mirror.ephemeral.freshness import Freshness
from mirror.ephemeral.negative import Negatives
from mirror.ephemeral.pages import Pages
from mirror.logs import AccessLog, configure
from mirror.metrics import Metrics
from mirror.pull.blobs import BlobPulls
from mirror.pull.listings import ListingPulls
from mirror.pull.manifests import ManifestPulls
from mirror.pull.policy import Splitting
from mirror.pull.slots import SlotLimits, Slots
from mirror.store.database import IndexUnavailableError
from mirror.store.scrub import Scrub
from mirror.web.exchange import Ending
from mirror.web.health import Condition, HealthFace
from mirror.web.hot import HotTable
from mirror.web.htpasswd import Htpasswd
from mirror.web.registry import RegistryFace
from mirror.web.routes import Routes
from mirror.web.sending import Sender
from mirror.web.server import Server
from mirror.web.status import StatusFace
from mirror.web.tls import Certificate

_EPHEMERAL_KEYS: Final = 100_000
_PAGES: Final = 1_000
_SENDING_THREADS: Final = 16  # more than cores: one may wait for a page that is still on the disk
_TEND_SECONDS: Final = 5.0
_UNSEEN_SECONDS: Final = 10.0  # so long a worker may hold the file of what another evicted
_GC_THRESHOLDS: Final = (20_000, 20, 50)


@dataclass(frozen=True, slots=True)
class _Teller:
    """Tells metrics and access log of every request."""

    metrics: Metrics
    log: AccessLog

    def request_ended(self, ending: Ending) -> None:
        self.metrics.request_ended(ending)
        self.log.request_ended(ending)

    def repeated(self, ending: Ending, used: Callable[[], None]) -> Callable[[str, float], None]:
        count = self.metrics.repeated(ending.exchange)

        def ended(client: str, seconds: float) -> None:
            used()
            count(seconds)
            if self.log.wanted:
                self.log.request_ended(replace(ending, client=client, seconds=seconds))

        return ended


async def run(config: Config) -> None:
    """Serve until SIGTERM or SIGINT, then finish what is being sent.

    Raises:
        StartError: the mirror cannot start.
    """
    configure(config.log.level, config.log.format, access=config.log.access)
    allow_open_files(config.limits.connections)
    stopping = asyncio.Event()
    heed(stopping)
    async with (
        supervised(os.environ, os.getpid()) as supervisor,
        serving(config, stopping) as listeners,
    ):
        announce(config, [listener.address for listener in listeners])
        _settle()
        supervisor.ready()
        await stopping.wait()
        supervisor.stopping()
        say_stopping(config)


async def run_worker(
    config: Config, listeners: Sequence[Listener], number: int, ready: Callable[[], None]
) -> None:
    """Serve as one of several processes, until told to stop or the first process is gone.

    ``config`` holds this worker's share of what is bounded; ``ready`` is called once it serves.

    Raises:
        StartError: the mirror cannot start.
    """
    stopping = asyncio.Event()
    heed(stopping)
    unseen = _UNSEEN_SECONDS
    async with _serving_on(listeners, config, stopping, first=number == 0, unseen=unseen):
        _settle()
        ready()
        orphaned = asyncio.create_task(until_orphaned(stopping), name="parent")
        await stopping.wait()
        orphaned.cancel()


def _settle() -> None:
    """Keep what is there now: with a thousand clients the collector took half of the time."""
    gc.freeze()
    gc.set_threshold(*_GC_THRESHOLDS)


@asynccontextmanager
async def serving(config: Config, stopping: asyncio.Event) -> AsyncIterator[list[Listener]]:
    """Serve while the context is open; yields what it listens on.

    ``stopping`` makes ``/readyz`` say so, for whoever balances load.

    Raises:
        StartError: the mirror cannot start.
    """
    with opened_listeners(config) as listeners:
        async with _serving_on(listeners, config, stopping):
            yield listeners


@asynccontextmanager
async def _serving_on(
    listeners: Sequence[Listener],
    config: Config,
    stopping: asyncio.Event,
    *,
    first: bool = True,
    unseen: float = math.inf,
) -> AsyncIterator[None]:
    """Serve on what is open already.

    Of several processes one is the ``first``, which does what is done once; what others evict may
    be given for so many ``unseen`` seconds.

    Raises:
        StartError: the mirror cannot start.
    """
    metrics = Metrics(__version__)
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(opened_store(config, metrics))
        routes = await stack.enter_async_context(_opened_routes(config, store, metrics, stopping))
        admission = stack.enter_context(opened_admission(config))
        chain = certificate(config)
        teller = _Teller(metrics, AccessLog())
        table = stack.enter_context(_opened_table(store, unseen)) if config.server.hot else None
        server = Server(routes, teller, server_limits(config), admission, proxies(config), table)
        runner = web.ServerRunner(server, shutdown_timeout=config.server.drain.seconds)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        tending = asyncio.create_task(_tend_regularly(store), name="tend")
        stack.callback(tending.cancel)
        if first and config.cache.scrub.seconds:
            scrub = Scrub(store.objects, store.layout.scrub, config.cache.scrub.seconds)
            scrubbing = asyncio.create_task(scrub.run(), name="scrub")
            stack.callback(scrubbing.cancel)
        changing = [part for part in (chain, admission.users) if part is not None]
        reloading = asyncio.create_task(_reload_regularly(changing), name="reload")
        stack.callback(reloading.cancel)
        await listen(runner, listeners, None if chain is None else chain.context)
        for listener in listeners:
            stack.callback(listener.withdraw)
        yield


@asynccontextmanager
async def _opened_routes(
    config: Config, store: Store, metrics: Metrics, stopping: asyncio.Event
) -> AsyncIterator[Routes]:
    backend = Backend(_EPHEMERAL_KEYS)
    negatives = Negatives(backend, config.tags.negative_max_age.seconds)
    max_age = config.tags.max_age.seconds
    async with AsyncExitStack() as stack:
        registries = {
            name: await stack.enter_async_context(
                opened_upstream(name, upstream, config, backend, metrics)
            )
            for name, upstream in config.enabled().items()
        }
        limits = config.limits
        slots = _slots(config)
        blobs = BlobPulls(registries, store.blobs, negatives, metrics, slots)
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
        threads = stack.enter_context(ThreadPoolExecutor(_SENDING_THREADS, "send"))
        sender = Sender(threads, limits.stall_timeout.seconds)
        yield Routes(
            RegistryFace(directory(config), blobs, manifests, listings, sender),
            _health(store, metrics, stopping),
            StatusFace(__version__, tuple(config.enabled()), config.default_upstream()),
        )


def _slots(config: Config) -> Slots:
    limits, fill = config.limits, config.fill
    connections = {name: upstream.max_connections for name, upstream in config.enabled().items()}
    return Slots(
        SlotLimits(limits.downloads, limits.queue, limits.queue_timeout.seconds, connections),
        Splitting(fill.connections, fill.segment.bytes, fill.parallel_from.bytes),
    )


def _health(store: Store, metrics: Metrics, stopping: asyncio.Event) -> HealthFace:
    def condition() -> Condition:
        if stopping.is_set():
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


@contextlib.contextmanager
def _opened_table(store: Store, unseen: float) -> Iterator[HotTable]:
    with contextlib.closing(HotTable(unseen)) as table:
        store.objects.watch(lambda key: table.forget(key.digest))
        yield table


async def _reload_regularly(parts: Iterable[Certificate | Htpasswd]) -> None:
    while True:
        await asyncio.sleep(_TEND_SECONDS)
        for part in parts:
            part.reload()


async def _tend_regularly(store: Store) -> None:
    while True:
        await asyncio.sleep(_TEND_SECONDS)
        await store.objects.flush_touches()
        await store.objects.heal()
        await store.tags.heal()
