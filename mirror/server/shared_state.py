"""What stays while configurations come and go: store, figures, slots, and the fills under way."""

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import Executor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from mirror.config.model import Config
from mirror.http.response_cache import HotTable
from mirror.metrics.metrics import Metrics
from mirror.pull.fills import Fills
from mirror.pull.policy import AHEAD_SHARE, Splitting
from mirror.pull.range_fetch import Ahead
from mirror.pull.slots import Slots
from mirror.server.events import UpstreamTeller
from mirror.server.limits import slot_limits
from mirror.server.recorder import Bookkeeper
from mirror.server.store import Store
from mirror.server.upstreams import Upstreams
from mirror.threads import Threads

_SENDING_THREADS: Final = 16  # more than cores: one may wait for a page that is still on the disk


@dataclass(frozen=True, slots=True)
class Ground:
    """It, with the fills of what is everybody's and of what is private apart.

    ``stopping``: the mirror is about to end.
    """

    store: Store
    metrics: Metrics
    books: Bookkeeper
    table: HotTable
    slots: Slots
    fills: Fills
    private_fills: Fills
    upstreams: Upstreams
    sending: Executor
    stopping: asyncio.Event


@asynccontextmanager
async def opened_ground(
    config: Config,
    store: Store,
    metrics: Metrics,
    books: Bookkeeper,
    table: HotTable,
    stopping: asyncio.Event,
) -> AsyncIterator[Ground]:
    """What the first configuration and all to come stand on."""
    upstreams = Upstreams(UpstreamTeller(metrics, books), store.rooms)
    slots = Slots(slot_limits(config), splitting(config))
    share = AHEAD_SHARE / config.server.processes()
    public, private = (Fills(Ahead(share)) for _ in range(2))  # each of its own: it keeps bytes
    with Threads(_SENDING_THREADS, "send") as sending:
        try:
            yield Ground(
                store, metrics, books, table, slots, public, private, upstreams, sending, stopping
            )
        finally:
            await public.ahead.close()
            await private.ahead.close()


def splitting(config: Config) -> Splitting:
    """How a large blob is split."""
    fill = config.fill
    return Splitting(fill.connections, fill.segment.bytes, fill.parallel_from.bytes)
