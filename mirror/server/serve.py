"""Builds the parts from the lowest up; owns the order of start and stop."""

import asyncio
import contextlib
import gc
import math
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from aiohttp import web
from yarl import URL

from mirror import __version__
from mirror.access_log import PullSink, PullTracker, opened_access_log
from mirror.config.cluster import ClusterConfig
from mirror.config.model import Config
from mirror.http.response_cache import ResponseCache
from mirror.http.server import Server
from mirror.http.tls import Certificate
from mirror.logs import configure, dropped
from mirror.metrics.metrics import Metrics
from mirror.policy.rules import Moment
from mirror.server.access import HealthHandler, certificate, listen, monitored
from mirror.server.commands import commands
from mirror.server.control import opened_control
from mirror.server.events import RequestEvents, opened_stats
from mirror.server.generation import Generations, opened_generations
from mirror.server.listeners import Listener, Purpose, opened_listeners
from mirror.server.maintenance import BlockWatch, Maintenance
from mirror.server.open_files import allow_open_files, say_seldom_what_is_exhausted, say_what_is_cut
from mirror.server.process import (
    Stop,
    announce,
    heed,
    say_stopping,
    supervised,
)
from mirror.server.proxy import listening
from mirror.server.reload import Reloadable, Reread, reload_when_told
from mirror.server.shared_state import moment, opened_shared_state
from mirror.server.store import Store, opened_store, shortage
from mirror.server.upstreams import from_environment
from mirror.server.warming import Warming
from mirror.store.interface import IndexUnavailableError
from mirror.trouble import Trouble
from mirror.user_error import UserError

if TYPE_CHECKING:
    from mirror.tracing import Tracing

_TEND_SECONDS: Final = 5.0
_GC_THRESHOLDS: Final = (20_000, 20, 50)


async def run(config: Config, reread: Reread) -> None:
    """Serve until SIGTERM or SIGINT, then finish active transfers; ``reread`` on SIGHUP.

    After SIGTERM the listeners stay open for ``[server] lame_duck``.

    Raises:
        UserError: the mirror cannot start.
    """
    configure(config.log.level, config.log.format, access=config.log.access)
    allow_open_files()
    stop, reloading = Stop(), asyncio.Event()
    heed(stop, reloading)
    async with supervised() as supervisor, serving(config, stop.asked) as running:
        announce(config, running.listeners, await shortage(config, running.store))
        say_what_is_cut(config)
        settle()
        supervisor.ready()
        told = reload_when_told(reloading, running, reread, supervisor)
        telling = asyncio.create_task(told, name="reload")
        await stop.asked.wait()
        telling.cancel()
        supervisor.stopping()
        say_stopping(running.config)
        await stop.due(running.config.server.lame_duck.seconds)


def settle() -> None:
    """Exclude current objects from GC: with a thousand clients the collector took half the time."""
    gc.freeze()
    gc.set_threshold(*_GC_THRESHOLDS)


@asynccontextmanager
async def serving(
    config: Config, stopping: asyncio.Event, clock: Callable[[], Moment] = moment
) -> AsyncIterator[Reloadable]:
    """Serve while the context is open.

    Once ``stopping`` is set, ``/readyz`` reports it to load balancers.  Rules wait by ``clock``.

    Raises:
        UserError: the mirror cannot start.
    """
    with opened_listeners(config) as listeners:
        opening = serving_on(listeners, config, stopping, PullTracker(), clock=clock)
        async with opening as running:
            yield running


@asynccontextmanager
async def serving_on(
    listeners: Sequence[Listener],
    config: Config,
    stopping: asyncio.Event,
    pulls: PullSink,
    *,
    first: bool = True,
    unseen: float = math.inf,
    clock: Callable[[], Moment] = moment,
) -> AsyncIterator[Reloadable]:
    """Serve on open listeners; ``pulls`` gets what the log says about pulls.

    Of several processes, only the ``first`` does maintenance.  ``unseen``: for how many seconds
    this process may serve objects that another one has evicted.

    Raises:
        UserError: the mirror cannot start.
    """
    say_seldom_what_is_exhausted(asyncio.get_running_loop())
    metrics = Metrics(__version__)
    async with AsyncExitStack() as stack:
        tracing = await stack.enter_async_context(_opened_tracing(config))  # ends last
        store = await stack.enter_async_context(opened_store(config, metrics))
        table = stack.enter_context(_opened_table(store, unseen))
        recorder = await stack.enter_async_context(opened_stats(store))
        log = await stack.enter_async_context(opened_access_log(pulls))
        cluster = None
        if config.cluster != ClusterConfig():
            # Imported late: other mirrors need neither these modules nor their libraries.
            with _needing_extra():
                from mirror.server.cluster import opened_cluster  # noqa: PLC0415
            parts = (config, store, metrics, recorder, stopping, clock)
            cluster = await stack.enter_async_context(opened_cluster(*parts, first=first))
            store = replace(store, decisions=cluster.decisions)
        shared_state = await stack.enter_async_context(
            opened_shared_state(config, store, metrics, recorder, table, stopping, clock, cluster)
        )
        generations = await stack.enter_async_context(opened_generations(config, shared_state))
        places = {
            purpose: [listener for listener in listeners if listener.purpose is purpose]
            for purpose in Purpose
        }
        # Closed after the server: /readyz says there that the mirror stops.
        health = HealthHandler(shared_state)
        await stack.enter_async_context(monitored(places[Purpose.METRICS], health))
        chain = certificate(config)
        options = generations.current.options
        server = Server(options, RequestEvents(metrics, log, recorder), tracing)
        runner = web.ServerRunner(server)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        refused = Trouble()
        recorder.watch_troubles(lambda: (refused.problem,))
        watch = shared_state.block_watch
        await _read_blocks(watch)
        watching = asyncio.create_task(watch.run(), name="blocks")
        stack.callback(watching.cancel)
        recorder.watch_troubles(
            lambda: (
                None if chain is None else chain.problem,
                users.problem if (users := generations.current.options.admission.users) else None,
            )
        )
        obeyed = commands(shared_state, generations, time.time())
        control = opened_control(store.layout.control, options, obeyed, log, recorder.pull_ended)
        for receiver in (server.receive_by, await stack.enter_async_context(control)):
            generations.tell(receiver)
        tending = asyncio.create_task(_tend_regularly(store, metrics, first=first), name="tend")
        stack.callback(tending.cancel)
        housekeeping = stack.enter_context(contextlib.closing(Maintenance(store, first=first)))
        housekeeping.apply_options(config)
        warming = stack.enter_context(contextlib.closing(Warming(first=first)))
        warming.by(config)
        rereading = asyncio.create_task(_reread_regularly(chain, generations), name="reread")
        stack.callback(rereading.cancel)
        await listen(runner, places[Purpose.IMAGES], None if chain is None else chain.context)
        await stack.enter_async_context(listening(server, places[Purpose.PROXY]))
        for listener in listeners:
            stack.callback(listener.withdraw)
        yield Reloadable(
            *(listeners, generations, store, housekeeping, warming, chain),
            *(metrics.lifecycle, refused, cluster),
        )


@asynccontextmanager
async def _opened_tracing(config: Config) -> AsyncIterator["Tracing | None"]:
    """Collect spans while the context is open; None if not configured.

    Raises:
        UserError: OpenTelemetry is not installed, or its thread cannot start.
    """
    wanted = config.tracing
    if not wanted.endpoint:
        yield None
        return
    try:
        from mirror.tracing import Tracing  # noqa: PLC0415  # an extra that few install
    except ImportError as error:
        raise UserError(
            "[tracing] endpoint is set, but OpenTelemetry is not installed: "
            "pip install opentelemetry-sdk opentelemetry-exporter-otlp-proto-http, "
            "or leave endpoint empty"
        ) from error
    address = URL(wanted.address())
    # Not [fetch] proxy, which is for upstreams.
    proxy = from_environment().lookup(address.scheme, address.raw_host or "", address.port or 0)
    through = "" if proxy is None else str(proxy.url)
    try:
        tracing = Tracing(str(address), wanted.sample, wanted.service, __version__, through)
    except RuntimeError as error:  # the system refused the thread that exports spans
        raise UserError(
            f"[tracing]: {error}; raise the limit on threads (--pids-limit, TasksMax, ulimit -u)"
        ) from error
    try:
        yield tracing
    finally:
        await tracing.close()


@contextlib.contextmanager
def _needing_extra() -> Iterator[None]:
    """Import what only a cluster needs while the context is open.

    Raises:
        UserError: a library of the extra is missing.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        library = (error.name or "").partition(".")[0]
        text = f"[cluster] needs the library {library}: pip install 'container-mirror[cluster]'"
        raise UserError(text) from error


@contextlib.contextmanager
def _opened_table(store: Store, unseen: float) -> Iterator[ResponseCache]:
    with contextlib.closing(ResponseCache(unseen)) as table:
        store.objects.watch(lambda key: table.forget(key.digest))
        yield table


async def _read_blocks(watch: BlockWatch) -> None:
    """Read the list of blocks before the first request.

    Raises:
        UserError: the list cannot be read.
    """
    try:
        await watch.refresh()
    except OSError as error:
        raise UserError(f"the list of blocked images: {error.strerror}") from error


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
