"""A blob over several connections, whatever these do: the right bytes, nothing left over."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mirror.pull.parallel import Segments
from mirror.pull.policy import Splitting
from mirror.upstream.errors import (
    RangeRefusedError,
    RateLimitedError,
    TimedOutError,
    UnavailableError,
    UpstreamError,
)
from tests.fakes import random_bytes
from tests.waiting import limit

pytestmark = [pytest.mark.slow]

MIB = 1 << 20
PIECE = MIB // 4
DATA = random_bytes(24 * MIB)
SPLITTING = Splitting(4, 2 * MIB, 8 * MIB)
MOST = 30  # requests that may be needed without any fault


@dataclass
class Connection:
    """One answer: ``rounds`` of the event loop per piece; at byte ``ends`` of it, ``error``."""

    rounds: int = 2
    ends: int | None = None
    error: str = ""

    def raise_it(self) -> None:
        errors: dict[str, UpstreamError] = {
            "broken": UnavailableError("up", "broke"),
            "slow": TimedOutError("up", "slow"),
            "limited": RateLimitedError("up", "slowly", 0.0),
            "refused": RangeRefusedError("up", "no"),
        }
        if self.error in errors:
            raise errors[self.error]


class Body:
    def __init__(self, way: "Upstream", span: tuple[int, int], connection: Connection) -> None:
        self._way, self._connection = way, connection
        self.offset, self._stop = span
        self.total: int | None = len(DATA) - (connection.error == "another size")
        self.ranged = way.ranged
        self._position = self.offset

    async def read(self) -> bytes:
        for _ in range(self._connection.rounds):
            await asyncio.sleep(0)
        ends = self._connection.ends
        if ends is not None and self._position - self.offset >= ends:
            self._connection.raise_it()
            return b""
        piece = DATA[self._position : min(self._position + PIECE, self._stop)]
        self._position += len(piece)
        self._way.sent += len(piece)
        return piece


@dataclass
class Upstream:
    """Answers the requests with ``script`` first, then as it should."""

    script: list[Connection] = field(default_factory=list)
    ranged: bool = True
    splitting: Splitting = SPLITTING
    upstream: str = "up"
    spare: int = 100
    asked: list[tuple[int, int | None]] = field(default_factory=list)
    now: int = 0
    most: int = 0
    held: int = 0
    calmed: int = 0
    sent: int = 0

    @asynccontextmanager
    async def open(self, start: int, stop: int | None) -> AsyncIterator[Body]:
        self.asked.append((start, stop))
        connection = self.script.pop(0) if self.script else Connection()
        await asyncio.sleep(0)
        if connection.ends is None:
            connection.raise_it()
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            span = (start, len(DATA) if stop is None else stop)
            span = (0, len(DATA)) if connection.error == "ignores" else span
            yield Body(self, span, connection)
        finally:
            self.now -= 1

    def further(self):
        return self._slot() if self.held < self.spare and not self.calmed else None

    @contextmanager
    def _slot(self) -> Iterator[None]:
        self.held += 1
        try:
            yield
        finally:
            self.held -= 1

    def calm(self) -> None:
        self.calmed += 1


async def download(
    way: Upstream, start: int = 0, seen: Callable[[int], None] | None = None, work: int = 0
):
    """What comes, with resuming as a fill does it; tells how often that was needed.

    ``work``: how many rounds of the event loop it takes to store a piece.
    """
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0)
            ticks += 1

    ticking = asyncio.create_task(tick())
    got, resumed = bytearray(), 0
    try:
        while start + len(got) < len(DATA):
            stream = Segments(way, start + len(got), lambda: ticks * 0.05)
            try:
                async with aclosing(stream):
                    await stream.open()
                    skip = start + len(got) - stream.offset
                    while piece := await stream.read():
                        got += piece[skip:]
                        skip = max(0, skip - len(piece))
                        if seen:
                            seen(start + len(got))
                        for _ in range(work):
                            await asyncio.sleep(0)
            except UpstreamError:
                resumed += 1
                if resumed > 50:
                    raise
    finally:
        ticking.cancel()
        await asyncio.wait([ticking])
    assert way.now == way.held == 0, "every connection is closed, every slot given back"
    assert len(asyncio.all_tasks()) == 1, "no task is left over"
    return bytes(got), resumed


async def test_it_takes_as_many_connections_as_make_it_faster():
    way = Upstream()
    got, resumed = await download(way)
    assert got == DATA
    assert resumed == 0
    assert way.most >= 3
    assert way.sent <= 1.05 * len(DATA)
    assert way.asked[0] == (0, None), "the first is asked for everything"
    assert len(way.asked) < MOST


async def test_it_takes_one_connection_if_the_disk_is_slower_than_that():
    way = Upstream()
    got, _ = await download(way, work=6)
    assert got == DATA
    assert way.asked == [(0, None)]


async def test_it_begins_where_it_is_told_to():
    way = Upstream()
    got, _ = await download(way, start=5 * MIB + 3)
    assert got == DATA[5 * MIB + 3 :]
    assert way.most >= 3


@pytest.mark.parametrize(
    "way",
    [
        Upstream(ranged=False),
        Upstream(splitting=Splitting(1, 2 * MIB, 8 * MIB)),
        Upstream(splitting=Splitting(4, 2 * MIB, len(DATA) + 1)),
        Upstream(spare=0),
    ],
    ids=["does not do ranges", "not wanted", "too small", "no slot to spare"],
)
async def test_it_stays_with_one_connection(way):
    got, _ = await download(way)
    assert got == DATA
    assert way.asked == [(0, None)]


@pytest.mark.parametrize("error", ["ignores", "another size", "limited", "refused", "broken"])
async def test_an_upstream_that_minds_the_second_connection_keeps_the_first(error):
    way = Upstream([Connection(), Connection(error=error)])
    got, resumed = await download(way)
    assert got == DATA
    assert resumed == 0
    assert len(way.asked) == 2
    assert way.calmed
    assert way.sent <= 1.05 * len(DATA)


async def test_a_segment_that_breaks_is_gone_on_with_where_it_broke():
    breaks = [Connection(ends=MIB, error="broken") for _ in range(3)]
    way = Upstream([Connection(), *breaks])
    got, resumed = await download(way)
    assert got == DATA
    assert resumed == 0
    assert way.most >= 3
    assert way.sent <= 1.05 * len(DATA)


async def test_a_first_connection_that_breaks_costs_none_of_what_waits():
    way = Upstream([Connection(ends=3 * MIB, error="broken")])
    got, _ = await download(way)
    assert got == DATA
    assert way.sent <= 1.05 * len(DATA)


async def test_a_slot_is_held_as_long_as_its_segment_is_in_memory():
    way = Upstream()

    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0)
            ticks += 1

    ticking = asyncio.create_task(tick())
    async with aclosing(Segments(way, 0, lambda: ticks * 0.05)) as stream:
        await stream.open()
        while way.now < 3:
            assert await stream.read()
        for _ in range(100_000):  # nothing is taken meanwhile
            if way.now == 1:
                break
            await asyncio.sleep(0)
        assert way.now == 1, "the segments are there, and wait for the first connection"
        assert way.held >= 2
    assert way.held == 0
    ticking.cancel()


async def test_a_slow_connection_does_not_fill_the_memory():
    """One connection crawls: the others wait when four segments are there."""
    way = Upstream([Connection(), Connection(), Connection(rounds=100)])
    ahead = 0

    def seen(position: int) -> None:
        nonlocal ahead
        ahead = max(ahead, way.sent - position)

    got, _ = await download(way, seen=seen)
    assert got == DATA
    assert way.most >= 3
    print(f"{ahead / MIB:.1f} MiB were ahead")
    assert 2 * SPLITTING.segment_bytes < ahead <= 4 * SPLITTING.segment_bytes + 4 * PIECE


async def test_it_can_be_closed_at_any_moment():
    for reads in range(0, 60, 7):
        way = Upstream()
        stream = Segments(way, 0, asyncio.get_running_loop().time)
        async with aclosing(stream):
            await stream.open()
            for _ in range(reads):
                await stream.read()
        assert way.now == way.held == 0
        assert len(asyncio.all_tasks()) == 1


CONNECTIONS = st.builds(
    Connection,
    rounds=st.integers(1, 12),
    ends=st.one_of(st.none(), st.integers(0, 6 * MIB)),
    error=st.sampled_from(["", "broken", "slow", "limited", "refused", "another size", "ignores"]),
)


@pytest.mark.long
@pytest.mark.slow
@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(script=st.lists(CONNECTIONS, max_size=12), spare=st.integers(0, 4), start=st.integers(0, 9))
def test_whatever_the_connections_do_the_bytes_are_right(script, spare, start):
    # The first answer of all tells the size: what it may be is the fill's business.
    for connection in script[:1]:
        connection.error = connection.error.replace("another size", "")
    start *= MIB + 7
    way = Upstream(script, spare=spare)

    async def run() -> None:
        async with limit():
            got, _ = await download(way, start)
        assert got == DATA[start:]

    asyncio.run(run())
