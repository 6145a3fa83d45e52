"""How many downloads at once, how many wait for one to end, and who may have more connections."""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Final

from mirror.pull.errors import OverloadedError
from mirror.pull.policy import Splitting

_RETRY_SECONDS: Final = 5.0
#: Further connections for one blob are at most this share of all downloads: each holds a segment
#: in memory, and many blobs at once fill the line by themselves.
_FURTHER_SHARE: Final = 0.25
#: How long an upstream that minded a further connection is not asked for another.
_CALM_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True)
class SlotLimits:
    """``running`` downloads at once, ``waiting`` in line, each for at most ``patience`` seconds.

    ``connections``: how many at once from one upstream, by its name, where there is such a limit.
    """

    running: int
    waiting: int
    patience: float
    connections: Mapping[str, int] = field(default_factory=dict)


class _Room:
    """A semaphore whose size can change: what is too much then stays until it leaves by itself."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._taken = 0
        self._waiting: deque[asyncio.Future[None]] = deque()

    def full(self) -> bool:
        """Whether whoever comes now has to wait."""
        return self._taken >= self._size

    async def acquire(self) -> None:
        """Take a place, first come, first served."""
        if not self.full():
            self._taken += 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # its turn came in the very same moment
                self.release()
            raise

    def release(self) -> None:
        """Leave a place."""
        self._taken -= 1
        self._let_in()

    def resize(self, size: int) -> None:
        """Have so many places from now on."""
        self._size = size
        self._let_in()

    def _let_in(self) -> None:
        while self._waiting and not self.full():
            turn = self._waiting.popleft()
            if not turn.cancelled():
                self._taken += 1
                turn.set_result(None)


class Slots:
    """Lets in as many as there is room for; a full house says so."""

    def __init__(self, limits: SlotLimits, splitting: Splitting) -> None:
        self.splitting = splitting
        self._limits = limits
        self._free = _Room(limits.running)
        self._lanes = {name: _Room(count) for name, count in limits.connections.items()}
        self._running: Counter[str] = Counter()
        self._further: Counter[str] = Counter()
        self._calm_until: dict[str, float] = {}
        self._waiting = 0

    def change(self, limits: SlotLimits, splitting: Splitting) -> None:
        """Other limits from now on; what runs already goes on, and counts."""
        self.splitting = splitting
        self._limits = limits
        self._free.resize(limits.running)
        for name, count in limits.connections.items():
            self._lanes.setdefault(name, _Room(count)).resize(count)

    @asynccontextmanager
    async def taken(self, upstream: str) -> AsyncIterator[None]:
        """Hold a slot, after waiting for one if need be.

        Raises:
            OverloadedError: too many wait already, or none came free in time.
        """
        lane = self._lanes.get(upstream, self._free)
        await self._take(upstream, lane)
        self._running[upstream] += 1
        try:
            yield
        finally:
            self._running[upstream] -= 1
            self._free.release()
            if lane is not self._free:
                lane.release()

    def try_taken(self, upstream: str) -> AbstractContextManager[None] | None:
        """A slot for one more connection of a download that has one already, to be entered now.

        None where there is none to spare: no other download ever waits for such a slot.
        """
        now = asyncio.get_running_loop().time()
        further, running = self._further, self._running
        lane = self._limits.connections.get(upstream, self._limits.running)
        spare = (
            now >= self._calm_until.get(upstream, 0.0)
            and further.total() < self._limits.running * _FURTHER_SHARE
            and further.total() + running.total() < self._limits.running
            and further[upstream] + running[upstream] < lane
            and not self._waiting
        )
        return self._further_taken(upstream) if spare else None

    def calm(self, upstream: str) -> None:
        """Ask ``upstream`` for no further connections for a while, since it minded one."""
        self._calm_until[upstream] = asyncio.get_running_loop().time() + _CALM_SECONDS

    @contextmanager
    def _further_taken(self, upstream: str) -> Iterator[None]:
        self._further[upstream] += 1
        try:
            yield
        finally:
            self._further[upstream] -= 1

    async def _take(self, upstream: str, lane: _Room) -> None:
        full = self._free.full() or lane.full()
        if full and self._waiting >= self._limits.waiting:
            raise OverloadedError(upstream, "too many downloads wait already", _RETRY_SECONDS)
        self._waiting += 1
        try:
            async with asyncio.timeout(self._limits.patience):
                await lane.acquire()
                if lane is not self._free:
                    await _acquire_too(self._free, lane)
        except TimeoutError as error:
            text = "no download ended in time to begin another"
            raise OverloadedError(upstream, text, _RETRY_SECONDS) from error
        finally:
            self._waiting -= 1


async def _acquire_too(other: _Room, held: _Room) -> None:
    try:
        await other.acquire()
    except BaseException:
        held.release()
        raise
