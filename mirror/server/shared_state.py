"""State that survives reloads: store, metrics, slots, and active fills."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mirror.config.model import Config
from mirror.http.response_cache import ResponseCache
from mirror.inventory.browse import Browser
from mirror.metrics.metrics import Metrics
from mirror.policy.rules import Moment
from mirror.pull.blobs import Fills
from mirror.pull.body import RangeFetches
from mirror.pull.gate import BlockList
from mirror.pull.policy import AHEAD_SHARE, Splitting
from mirror.pull.slots import Slots
from mirror.server.events import StatsRecorder, UpstreamEvents
from mirror.server.maintenance import BlockWatch
from mirror.server.open_files import slot_limits
from mirror.server.store import Store
from mirror.server.upstreams import Upstreams
from mirror.server.warming import Requested
from mirror.store.metadata.operator_files import BlockFile
from mirror.threads import Threads
from mirror.trouble import Problem

if TYPE_CHECKING:
    from mirror.server.cluster import OpenedCluster

_BOOT: Final = Path("/proc/sys/kernel/random/boot_id")
_STEADY: Final = getattr(time, "CLOCK_BOOTTIME", None)  # Linux; goes on during suspend
_SENDING_THREADS: Final = 16  # more than cores: a thread may wait for a page to be read from disk


@dataclass(frozen=True, slots=True)
class SharedState:
    """State that survives reloads; public and private fills are kept separately.

    ``stopping`` is set when the mirror is about to end.
    """

    store: Store
    metrics: Metrics
    recorder: StatsRecorder
    table: ResponseCache
    blocks: BlockList
    block_watch: BlockWatch
    slots: Slots
    fills: Fills
    private_fills: Fills
    upstreams: Upstreams
    sending: Executor
    stopping: asyncio.Event
    clock: Callable[[], Moment]
    browser: Browser
    requested: Requested
    cluster: "OpenedCluster | None"


@asynccontextmanager
async def opened_shared_state(
    config: Config,
    store: Store,
    metrics: Metrics,
    recorder: StatsRecorder,
    table: ResponseCache,
    stopping: asyncio.Event,
    clock: Callable[[], Moment],
    cluster: "OpenedCluster | None",
) -> AsyncIterator[SharedState]:
    upstreams = Upstreams(UpstreamEvents(metrics, recorder), store.rooms)
    share = AHEAD_SHARE / config.server.processes()
    public, private = (
        Fills(RangeFetches(share)) for _ in range(2)
    )  # one each, since RangeFetches keeps bytes
    slots = Slots(slot_limits(config), splitting(config), public.give_way)
    recorder.watch_troubles(upstreams.problems)
    recorder.watch_troubles(lambda: (store.objects.health.problem, public.room.problem))
    recorder.watch_troubles(lambda: (_unnamed(private.room.problem),))
    requested = Requested()
    blocks = BlockList(table.close)
    with Threads(_SENDING_THREADS, "send") as sending:
        try:
            yield SharedState(
                store,
                metrics,
                recorder,
                table,
                blocks,
                BlockWatch(
                    BlockFile(store.layout.blocks),
                    blocks,
                    cluster.blocks.share if cluster and cluster.blocks else None,
                ),
                slots,
                public,
                private,
                upstreams,
                sending,
                stopping,
                clock,
                Browser(store.browsable, store.objects),
                requested,
                cluster,
            )
        finally:
            async with AsyncExitStack() as stack:  # closes both even if one close is cancelled
                stack.push_async_callback(private.ahead.close)
                stack.push_async_callback(public.ahead.close)
                stack.push_async_callback(requested.close)


def _unnamed(problem: Problem | None) -> Problem | None:
    """Return a problem of private images for the eyes of everybody: without their names."""
    return problem and replace(problem, cause="a private image is not kept")


def splitting(config: Config) -> Splitting:
    """How a large blob is split into segments."""
    fill = config.fill
    return Splitting(fill.connections, fill.segment.bytes, fill.parallel_from.bytes)


def moment() -> Moment:
    """The clock of rules that wait for days: it outlasts restarts, and settings of the clock."""
    if _STEADY is None or not (boot := _boot()):
        return Moment(time.time())
    return Moment(time.time(), boot, time.clock_gettime(_STEADY))


@lru_cache(1)
def _boot() -> str:
    try:
        return _BOOT.read_text(encoding="ascii").strip()
    except OSError:
        return ""
