"""One blob over several connections, handed out strictly in order.

Begins as one connection, read as it comes (*the front*).  Where that is slow, what lies further
ahead is asked for over further connections, a *segment* each, and waits in memory until the front
has come there; then the front is closed and the segments follow one another.  Whatever a segment
cannot get, the front gets.  Knows no HTTP and no disk.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    AsyncExitStack,
    ExitStack,
)
from typing import Final, Protocol

from mirror.pull.policy import Backoff, Ramp, Splitting
from mirror.upstream.errors import (
    RateLimitedError,
    TimedOutError,
    UnavailableError,
    UpstreamError,
)

_log = logging.getLogger(__name__)

#: A segment is gone on with after delays up to this one, in seconds; then the front takes over.
_MAX_DELAY_SECONDS: Final = 0.4
#: Upstream may ask for so much quiet in the middle of a blob before the fill is given up.
_MAX_QUIET_SECONDS: Final = 60.0
#: Whoever waits for a segment does so for so long; then it is asked for again, as the front.
_PATIENCE_SECONDS: Final = 5.0


class Stream(Protocol):
    """The bytes of a blob from ``offset`` on; ``total`` is the blob's size."""

    @property
    def offset(self) -> int:
        """Where it begins."""

    @property
    def total(self) -> int | None:
        """The size of the whole blob, in bytes, where upstream said it."""

    async def read(self) -> bytes:
        """The next bytes, ``b""`` at the end.

        Raises:
            UpstreamError: the rest cannot be had from this stream.
        """


class Ranged(Stream, Protocol):
    """A stream of one connection; ``ranged``: upstream says that it can be asked for parts."""

    @property
    def ranged(self) -> bool:
        """Whether upstream can be asked for parts."""


class BlobFetcher(Protocol):
    """How to come by parts of one blob."""

    @property
    def upstream(self) -> str:
        """The name of the upstream."""

    @property
    def splitting(self) -> Splitting:
        """What is worth several connections."""

    def open(self, start: int, stop: int | None) -> AbstractAsyncContextManager[Ranged]:
        """Ask for the bytes from ``start`` up to ``stop`` (None: the end)."""

    def further(self) -> AbstractContextManager[None] | None:
        """A slot for one more connection, None if there is none to spare."""

    def calm(self) -> None:
        """Upstream minded a further connection."""


class _Segment:
    """A stretch from ``start`` to ``stop`` that waits in memory; ``received`` up to there.

    ``slot`` is held until all of it was taken: it stands for the memory as for the connection.
    """

    def __init__(self, start: int, stop: int, slot: ExitStack) -> None:
        self.slot = slot
        self.start = self.received = start
        self.stop = stop
        self._pieces: deque[bytes] = deque()
        self._changed = asyncio.Event()

    def put(self, piece: bytes) -> None:
        """Add what arrived; what is more than was asked for is dropped."""
        piece = piece[: self.stop - self.received]
        self._pieces.append(piece)
        self.received += len(piece)
        self._changed.set()

    def end(self) -> None:
        """There will be no more: the segment ends here."""
        self.stop = self.received
        self._changed.set()

    async def take(self) -> bytes:
        """The next bytes, ``b""`` at the end.

        Raises:
            TimeoutError: none came for a while.
        """
        while not self._pieces and self.received < self.stop:
            self._changed.clear()
            async with asyncio.timeout(_PATIENCE_SECONDS):
                await self._changed.wait()
        return self._pieces.popleft() if self._pieces else b""

    @property
    def begun(self) -> bool:
        """Whether any of it has arrived."""
        return self.received > self.start


class Segments:
    """A blob from byte ``start`` on, over as many connections as make it faster."""

    def __init__(self, way: BlobFetcher, start: int, clock: Callable[[], float]) -> None:
        self._way = way
        self._clock = clock
        self._splitting = way.splitting
        self._ramp = Ramp(way.splitting.connections)
        self._position = self._planned = start
        self._front: Ranged | None = None
        self._fronting = True  # there is a front, or it is being opened
        self._connection = AsyncExitStack()  # the front's
        self._ahead: deque[_Segment] = deque()
        self._tasks: dict[asyncio.Task[None], _Segment] = {}
        self._own_task: asyncio.Task[None] | None = None  # has the slot that was the front's
        self._mending = Backoff(start)
        self.offset = start
        self.total: int | None = None

    async def open(self) -> None:
        """Open the first connection.

        Raises:
            UpstreamError: the blob cannot be had.
        """
        first = await self._connection.enter_async_context(self._way.open(self._position, None))
        self._front, self.offset, self.total = first, first.offset, first.total
        whole = first.total or 0
        if not first.ranged or first.offset != self._position or self._too_small(whole):
            self._ramp = Ramp(1)
            self._position = first.offset

    async def read(self) -> bytes:
        """The next bytes, ``b""`` at the end.

        Raises:
            UpstreamError: the rest cannot be had.
        """
        while True:
            self._arrange()
            if self._ahead and self._ahead[0].start <= self._position:
                piece = await self._take(self._ahead[0])
                if not piece:
                    continue
            elif self._front is None and self._position == self.total:
                return b""
            else:
                try:
                    piece = await self._read_front()
                except UpstreamError as error:
                    await self._mend(error)
                    continue
            self._position += len(piece)
            return piece

    async def aclose(self) -> None:
        """Close all connections; what waits in memory is dropped."""
        self._ramp.retreat()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        for segment in list(self._ahead):
            self._drop(segment)
        await self._connection.aclose()
        for error in ended:
            if isinstance(error, Exception):
                raise error

    async def _take(self, head: _Segment) -> bytes:
        """The next bytes of the segment that is next, ``b""`` if there will be no more of it."""
        try:
            piece = await head.take()
        except TimeoutError:
            _log.info("%s keeps a connection waiting; going back to one", self._way.upstream)
            piece = b""
            self._give_up(head)
        if not piece:
            self._drop(head)
        return piece

    # The front.

    async def _read_front(self) -> bytes:
        if self._front is None:
            await self._reopen()
        assert self._front is not None, "it was opened just now"
        piece = await self._front.read()
        self._note(len(piece))
        if self._ahead and not piece:
            early = self._ahead[0].start - self._position
            raise UnavailableError(self._way.upstream, f"ended {early} bytes early")
        while self._ahead and len(piece) >= (limit := self._ahead[0].start - self._position):
            if self._ahead[0].begun:
                await self._close_front()
                return piece[:limit]
            self._give_up(self._ahead[0])  # the front is here before it, and goes on
        return piece

    async def _reopen(self) -> None:
        """Open another front for what no segment has; to the next segment if there is one."""
        self._fronting = True
        stop = self._ahead[0].start if self._ahead else None
        opening = self._way.open(self._position, stop)
        front = await self._connection.enter_async_context(opening)
        if front.offset != self._position or front.total != self.total:
            raise UnavailableError(self._way.upstream, "no longer gives parts of the blob")
        self._front = front
        self._planned = max(self._planned, self._position)

    async def _close_front(self) -> None:
        self._front, self._fronting = None, False
        await self._connection.aclose()

    async def _mend(self, error: UpstreamError) -> None:
        """Go on after ``error`` here if that saves what waits in memory; else raise it."""
        await self._close_front()
        delay = self._mending.next_delay(self._position)
        if isinstance(error, RateLimitedError):
            # With one connection from the start there would have been nothing left to ask.
            self._retreat()
            delay = None if delay is None else max(delay, error.retry_after)
        elif not (self._ahead and error.transient):
            delay = None
        if delay is None or delay > _MAX_QUIET_SECONDS:
            if self._ahead:
                self._retreat()
            raise error
        _log.info("%s; going on from byte %d in %.1f s", error, self._position, delay)
        await asyncio.sleep(delay)

    # The segments.

    def _arrange(self) -> None:
        """Begin as many segments as there should be."""
        while len(self._tasks) + self._fronting < self._ramp.wanted:
            if self._ramp.wanted == 1 or not self._begin():
                return

    def _begin(self) -> bool:
        assert self.total is not None, "only a blob of known size has several connections"
        wanted, splitting = self._ramp.wanted, self._splitting
        start = max(self._planned, self._position)
        reach = self._position + wanted * splitting.segment_bytes
        if self._fronting and not self._ahead:
            if self._ramp.ends_soon(self.total - start):
                return False
            lead = splitting.segment(self._position, self.total, reach, wanted)
            start = self.total if lead is None else lead
        stop = splitting.segment(start, self.total, reach, wanted)
        if stop is None:
            return False
        own = not self._fronting and self._own_task is None
        slot = ExitStack()
        if not own:
            further = self._way.further()
            if further is None:
                return False
            slot.enter_context(further)
        self._planned = stop
        self._start(_Segment(start, stop, slot), own=own)
        return True

    def _start(self, segment: _Segment, *, own: bool) -> None:
        self._ahead.append(segment)
        task = asyncio.create_task(self._get(segment), name=f"segment {segment.start}")
        self._tasks[task] = segment
        if own:
            self._own_task = task
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._own_task = None if self._own_task is task else self._own_task
        if not task.cancelled() and task.exception() is not None:
            return  # told by :meth:`aclose`, which finds it still here
        del self._tasks[task]
        self._arrange()

    async def _get(self, segment: _Segment) -> None:
        """Bring a segment to its end, or end it where upstream does."""
        backoff = Backoff(segment.start)
        try:
            while segment.received < segment.stop:
                try:
                    await self._receive(segment)
                except UpstreamError as error:
                    await asyncio.sleep(self._delay(segment, backoff, error))
        except UpstreamError as error:
            _log.info("%s; going back to one connection", error)
            self._retreat()
        finally:
            segment.end()
            if not segment.begun:
                self._drop(segment)  # the front goes on over it

    def _give_up(self, segment: _Segment) -> None:
        """End a segment that takes too long; whatever it lacks, the front gets."""
        self._ramp.retreat()
        for task, got in self._tasks.items():
            if got is segment:
                task.cancel()
        segment.end()
        self._drop(segment)

    def _drop(self, segment: _Segment) -> None:
        if segment in self._ahead:
            self._ahead.remove(segment)
        segment.slot.close()

    def _delay(self, segment: _Segment, backoff: Backoff, error: UpstreamError) -> float:
        """Seconds until the segment may go on where it broke off.

        Raises:
            UpstreamError: it may not.
        """
        delay = backoff.next_delay(segment.received)
        began = segment.begun and not isinstance(error, TimedOutError)
        if not began or not error.transient or delay is None or delay > _MAX_DELAY_SECONDS:
            raise error
        return delay

    async def _receive(self, segment: _Segment) -> None:
        name = self._way.upstream
        async with self._way.open(segment.received, segment.stop) as stream:
            if stream.offset != segment.received or stream.total != self.total:
                # It ignores Range, whatever it had said: as long as one connection does, fine.
                raise UnavailableError(name, "answers another part than was asked for")
            while segment.received < segment.stop:
                piece = await stream.read()
                if not piece:
                    raise UnavailableError(name, "ended a part early")
                segment.put(piece)
                self._note(len(piece))

    def _retreat(self) -> None:
        self._ramp.retreat()
        self._way.calm()

    def _note(self, count: int) -> None:
        working = sum(segment.begun for segment in self._tasks.values())
        self._ramp.note(self._clock(), count, working + (self._front is not None))

    def _too_small(self, size: int) -> bool:
        return size < self._splitting.from_bytes
