"""Builds the parts from the lowest up; owns the order of start and stop."""

import asyncio
import contextlib
import gc
import math
import os
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Final

from aiohttp import web

from mirror import __version__
from mirror.access_log import AccessLog
from mirror.config.model import Config
from mirror.http.response_cache import ResponseCache
from mirror.http.server import Server
from mirror.http.tls import Certificate
from mirror.logs import configure, dropped
from mirror.metrics.metrics import Metrics
from mirror.server.access import certificate, listen
from mirror.server.commands import commands
from mirror.server.control import opened_control
from mirror.server.events import RequestEvents
from mirror.server.generation import Generations, opened_generations
from mirror.server.listeners import Listener, opened_listeners
from mirror.server.maintenance import Maintenance, ScrubTask
from mirror.server.open_files import allow_open_files, say_seldom_what_is_exhausted, say_what_is_cut
from mirror.server.process import (
    announce,
    heed,
    say_stopping,
)
from mirror.server.proxy import listening
from mirror.server.recorder import opened_stats
from mirror.server.reload import Reloadable, Reread, reload_when_told
from mirror.server.shared_state import opened_shared_state
from mirror.server.store import Store, opened_store
from mirror.server.systemd import supervised
from mirror.server.tracing import opened_tracing
from mirror.server.warming import Warming
from mirror.server.worker_channel import WorkerChannel
from mirror.store.interface import IndexUnavailableError

_TEND_SECONDS: Final = 5.0
_UNSEEN_SECONDS: Final = 10.0  # a worker may serve files so long after another evicted them
_GC_THRESHOLDS: Final = (20_000, 20, 50)


async def run(config: Config, reread: Reread) -> None:
    """Serve until SIGTERM or SIGINT, then finish active transfers; ``reread`` on SIGHUP.

    Raises:
        UserError: the mirror cannot start.
    """
    configure(config.log.level, config.log.format, access=config.log.access)
    allow_open_files()
    stopping, reloading = asyncio.Event(), asyncio.Event()
    heed(stopping, reloading)
    async with (
        supervised(os.environ, os.getpid()) as supervisor,
        serving(config, stopping) as running,
    ):
        announce(config, running.listeners)
        say_what_is_cut(config)
        _settle()
        supervisor.ready()
        told = reload_when_told(reloading, running.reloadable, reread, supervisor)
        telling = asyncio.create_task(told, name="reload")
        await stopping.wait()
        telling.cancel()
        supervisor.stopping()
        say_stopping(running.reloadable.config)


async def run_worker(
    config: Config, listeners: Sequence[Listener], number: int, channel: WorkerChannel
) -> None:
    """Serve as one of several processes, until told to stop or the first process is gone.

    ``config`` holds this worker's share of the limits; ``channel`` connects it to the first
    process.

    Raises:
        UserError: the mirror cannot start.
    """
    stopping = asyncio.Event()
    heed(stopping)
    first, unseen = number == 0, _UNSEEN_SECONDS
    async with (
        channel.held(stopping),
        _serving_on(listeners, config, stopping, first=first, unseen=unseen) as reloadable,
    ):
        _settle()
        channel.ready()
        obeying = asyncio.create_task(channel.obey(reloadable.reload), name="reload")
        await stopping.wait()
        obeying.cancel()


def _settle() -> None:
    """Exclude current objects from GC: with a thousand clients the collector took half the time."""
    gc.freeze()
    gc.set_threshold(*_GC_THRESHOLDS)


@dataclass(frozen=True, slots=True)
class Running:
    """A mirror that serves: its listeners, and its parts that can be reloaded."""

    listeners: list[Listener]
    reloadable: Reloadable


@asynccontextmanager
async def serving(config: Config, stopping: asyncio.Event) -> AsyncIterator[Running]:
    """Serve while the context is open.

    Once ``stopping`` is set, ``/readyz`` reports it to load balancers.

    Raises:
        UserError: the mirror cannot start.
    """
    with opened_listeners(config) as listeners:
        async with _serving_on(listeners, config, stopping) as reloadable:
            yield Running(listeners, reloadable)


@asynccontextmanager
async def _serving_on(
    listeners: Sequence[Listener],
    config: Config,
    stopping: asyncio.Event,
    *,
    first: bool = True,
    unseen: float = math.inf,
) -> AsyncIterator[Reloadable]:
    """Serve on open listeners.

    Of several processes, only the ``first`` does maintenance.  ``unseen``: for how many seconds
    this process may serve objects that another one has evicted.

    Raises:
        UserError: the mirror cannot start.
    """
    say_seldom_what_is_exhausted(asyncio.get_running_loop())
    metrics = Metrics(__version__)
    async with AsyncExitStack() as stack:
        tracing = await stack.enter_async_context(opened_tracing(config))  # ends last
        store = await stack.enter_async_context(opened_store(config, metrics))
        table = stack.enter_context(_opened_table(store, unseen))
        recorder = await stack.enter_async_context(opened_stats(store))
        shared_state = await stack.enter_async_context(
            opened_shared_state(config, store, metrics, recorder, table, stopping)
        )
        generations = await stack.enter_async_context(opened_generations(config, shared_state))
        chain = certificate(config)
        options = generations.current.options
        server = Server(options, RequestEvents(metrics, AccessLog(), recorder), tracing)
        runner = web.ServerRunner(server)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        recorder.watch_troubles(
            lambda: (
                None if chain is None else chain.problem,
                users.problem if (users := generations.current.options.admission.users) else None,
            )
        )
        obeyed = commands(store, generations, time.time())
        control = opened_control(store.layout.control, options, obeyed, recorder.pull_ended)
        for receiver in (server.receive_by, await stack.enter_async_context(control)):
            generations.tell(receiver)
        tending = asyncio.create_task(_tend_regularly(store, metrics, first=first), name="tend")
        stack.callback(tending.cancel)
        scrubbing = stack.enter_context(contextlib.closing(ScrubTask(store, first=first)))
        scrubbing.every(config.cache.scrub.seconds)
        housekeeping = stack.enter_context(contextlib.closing(Maintenance(store, first=first)))
        housekeeping.apply_options(config)
        warming = stack.enter_context(contextlib.closing(Warming(first=first)))
        warming.by(config)
        rereading = asyncio.create_task(_reread_regularly(chain, generations), name="reread")
        stack.callback(rereading.cancel)
        direct = [listener for listener in listeners if not listener.proxy]
        await listen(runner, direct, None if chain is None else chain.context)
        proxies = [listener for listener in listeners if listener.proxy]
        await stack.enter_async_context(listening(server, proxies))
        for listener in listeners:
            stack.callback(listener.withdraw)
        yield Reloadable(generations, store, scrubbing, housekeeping, warming, chain)


@contextlib.contextmanager
def _opened_table(store: Store, unseen: float) -> Iterator[ResponseCache]:
    with contextlib.closing(ResponseCache(unseen)) as table:
        store.objects.watch(lambda key: table.forget(key.digest))
        yield table


async def _reread_regularly(chain: Certificate | None, generations: Generations) -> None:
    while True:
        await asyncio.sleep(_TEND_SECONDS)
        for part in (chain, generations.current.options.admission.users):
            if part is not None:
                part.reload()


async def _tend_regularly(store: Store, metrics: Metrics, *, first: bool) -> None:
    while True:
        await asyncio.sleep(_TEND_SECONDS)
        metrics.log_dropped(dropped())  # another process may answer /metrics
        await store.objects.flush_touches()
        await store.heal()
        if first:
            with contextlib.suppress(OSError, IndexUnavailableError):  # logged, and healed, already
                await store.objects.make_room(0)  # databases and other files on the disk grow
