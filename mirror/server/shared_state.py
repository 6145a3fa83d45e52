"""What stays while configurations come and go: store, figures, slots, and the fills under way."""

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from mirror.config.model import Config
from mirror.http.response_cache import ResponseCache
from mirror.metrics.metrics import Metrics
from mirror.pull.fills import Fills
from mirror.pull.policy import AHEAD_SHARE, Splitting
from mirror.pull.range_fetch import RangeFetches
from mirror.pull.slots import Slots
from mirror.server.events import UpstreamEvents
from mirror.server.limits import slot_limits
from mirror.server.recorder import StatsRecorder
from mirror.server.store import Store
from mirror.server.upstreams import Upstreams
from mirror.threads import Threads

_SENDING_THREADS: Final = 16  # more than cores: one may wait for a page that is still on the disk


@dataclass(frozen=True, slots=True)
class SharedState:
    """It, with the fills of what is everybody's and of what is private apart.

    ``stopping``: the mirror is about to end.
    """

    store: Store
    metrics: Metrics
    books: StatsRecorder
    table: ResponseCache
    slots: Slots
    fills: Fills
    private_fills: Fills
    upstreams: Upstreams
    sending: Executor
    stopping: asyncio.Event


@asynccontextmanager
async def opened_shared_state(
    config: Config,
    store: Store,
    metrics: Metrics,
    books: StatsRecorder,
    table: ResponseCache,
    stopping: asyncio.Event,
) -> AsyncIterator[SharedState]:
    """What the first configuration and all to come stand on."""
    upstreams = Upstreams(UpstreamEvents(metrics, books), store.rooms)
    slots = Slots(slot_limits(config), splitting(config))
    share = AHEAD_SHARE / config.server.processes()
    public, private = (
        Fills(RangeFetches(share)) for _ in range(2)
    )  # each of its own: it keeps bytes
    with Threads(_SENDING_THREADS, "send") as sending:
        try:
            yield SharedState(
                store, metrics, books, table, slots, public, private, upstreams, sending, stopping
            )
        finally:
            await public.ahead.close()
            await private.ahead.close()


def splitting(config: Config) -> Splitting:
    """How a large blob is split."""
    fill = config.fill
    return Splitting(fill.connections, fill.segment.bytes, fill.parallel_from.bytes)
