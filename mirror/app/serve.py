"""Builds everything leaf to root, owns the order of start and stop."""

import asyncio
import contextlib
import gc
import math
import os
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Final

from aiohttp import web

from mirror import __version__
from mirror.app.books import opened_books
from mirror.app.control import about, opened_control
from mirror.app.door import certificate, listen
from mirror.app.edition import Ground, opened_edition
from mirror.app.notify import supervised
from mirror.app.process import (
    allow_open_files,
    announce,
    heed,
    say_stopping,
    until_orphaned,
)
from mirror.app.proxy import listening
from mirror.app.sockets import Listener, opened_listeners
from mirror.app.store import Store, opened_store
from mirror.app.teller import Teller
from mirror.config.model import Config
from mirror.logs import AccessLog, configure
from mirror.metrics import Metrics
from mirror.store.scrub import Scrub
from mirror.web.hot import HotTable
from mirror.web.htpasswd import Htpasswd
from mirror.web.server import Server
from mirror.web.tls import Certificate

_TEND_SECONDS: Final = 5.0
_UNSEEN_SECONDS: Final = 10.0  # so long a worker may hold the file of what another evicted
_GC_THRESHOLDS: Final = (20_000, 20, 50)


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
        announce(config, listeners)
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
        table = stack.enter_context(_opened_table(store, unseen))
        books = await stack.enter_async_context(opened_books(store))
        ground = Ground(store, metrics, books, table, stopping)
        reception = await stack.enter_async_context(opened_edition(config, ground))
        chain = certificate(config)
        server = Server(reception, Teller(metrics, AccessLog(), books))
        runner = web.ServerRunner(server, shutdown_timeout=config.server.drain.seconds)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        control = opened_control(store.layout.control, reception, about(time.time()))
        await stack.enter_async_context(control)
        tending = asyncio.create_task(_tend_regularly(store), name="tend")
        stack.callback(tending.cancel)
        if first and config.cache.scrub.seconds:
            scrub = Scrub(store.objects, store.layout.scrub, config.cache.scrub.seconds)
            scrubbing = asyncio.create_task(scrub.run(), name="scrub")
            stack.callback(scrubbing.cancel)
        changing = [part for part in (chain, reception.admission.users) if part is not None]
        reloading = asyncio.create_task(_reload_regularly(changing), name="reload")
        stack.callback(reloading.cancel)
        direct = [listener for listener in listeners if not listener.proxy]
        await listen(runner, direct, None if chain is None else chain.context)
        proxies = [listener for listener in listeners if listener.proxy]
        await stack.enter_async_context(listening(server, proxies))
        for listener in listeners:
            stack.callback(listener.withdraw)
        yield


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
        await store.heal()
