"""One blob over several connections; the bytes are returned strictly in order.

The download begins with one connection, whose bytes are returned as they arrive (*the front*).  If
that is slow, further connections each request a *segment* further ahead, which waits in memory
until the front has reached it; then the front is closed, and the segments follow one another.  The
front fetches the bytes that a segment fails to deliver.  This module knows neither HTTP nor disk.
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
from mirror.store.interface import Chunk
from mirror.upstream.errors import (
    RateLimitedError,
    TimedOutError,
    UnavailableError,
    UpstreamError,
)

_log = logging.getLogger(__name__)

#: A segment resumes after delays up to this one, in seconds; after that the front takes over.
_MAX_DELAY_SECONDS: Final = 0.4
#: The longest Retry-After in the middle of a blob; the fill fails if upstream asks for more.
_MAX_QUIET_SECONDS: Final = 60.0
#: A reader waits for a segment this long; after that the front requests its bytes again.
_PATIENCE_SECONDS: Final = 5.0


class Stream(Protocol):
    """The bytes of a blob, starting at ``offset``."""

    @property
    def offset(self) -> int:
        """The position of the first byte in the blob."""

    @property
    def total(self) -> int | None:
        """The size of the whole blob in bytes, None where upstream did not give it."""

    async def read(self) -> Chunk:
        """Return the next bytes, ``b""`` at the end.

        Raises:
            UpstreamError: this stream cannot deliver the rest.
        """


class Ranged(Stream, Protocol):
    """A stream of one connection."""

    @property
    def ranged(self) -> bool:
        """Whether upstream says that it supports range requests."""


class BlobFetcher(Protocol):
    """Requests parts of one blob."""

    @property
    def upstream(self) -> str:
        """The name of the upstream."""

    @property
    def splitting(self) -> Splitting:
        """The number of connections, and the sizes of blobs and segments."""

    def open(self, start: int, stop: int | None) -> AbstractAsyncContextManager[Ranged]:
        """Request the bytes from ``start`` to ``stop`` (None: to the end)."""

    def further(self) -> AbstractContextManager[None] | None:
        """A slot for one more connection, None if all are taken."""

    def calm(self) -> None:
        """Record that a further connection failed or was refused."""


class _Segment:
    """The bytes from ``start`` to ``stop``, which wait in memory; ``received``: the end so far.

    ``slot`` is held until all bytes are taken: it limits the memory as well as the connections.
    """

    def __init__(self, start: int, stop: int, slot: ExitStack) -> None:
        self.slot = slot
        self.start = self.received = start
        self.stop = stop
        self._pieces: deque[Chunk] = deque()
        self._changed = asyncio.Event()

    def put(self, piece: Chunk) -> None:
        """Add a piece; drop bytes beyond ``stop``."""
        piece = piece[: self.stop - self.received]
        self._pieces.append(piece)
        self.received += len(piece)
        self._changed.set()

    def end(self) -> None:
        """End the segment after the bytes received so far."""
        self.stop = self.received
        self._changed.set()

    async def take(self) -> Chunk:
        """Remove and return the next bytes, ``b""`` at the end.

        Raises:
            TimeoutError: none arrived for ``_PATIENCE_SECONDS``.
        """
        while not self._pieces and self.received < self.stop:
            self._changed.clear()
            async with asyncio.timeout(_PATIENCE_SECONDS):
                await self._changed.wait()
        return self._pieces.popleft() if self._pieces else b""

    @property
    def begun(self) -> bool:
        """Whether any byte has arrived."""
        return self.received > self.start


class Segments:
    """A blob from byte ``start`` on, over more connections as long as they make it faster."""

    def __init__(
        self,
        way: BlobFetcher,
        start: int,
        clock: Callable[[], float],
        arrived: Callable[[int], None] = lambda _: None,
    ) -> None:
        """``arrived`` is called with the size of each piece that arrives, in any order."""
        self._way = way
        self._clock = clock
        self._arrived = arrived
        self._splitting = way.splitting
        self._ramp = Ramp(way.splitting.connections)
        self._position = self._planned = start
        self._front: Ranged | None = None
        self._fronting = True  # a front is open, or being opened
        self._connection = AsyncExitStack()  # the front's
        self._ahead: deque[_Segment] = deque()
        self._tasks: dict[asyncio.Task[None], _Segment] = {}
        self._own_task: asyncio.Task[None] | None = None  # uses the former slot of the front
        self._backoff = Backoff(start)
        self._waited = 0.0  # seconds, in former calls of `read`
        self._waiting_since: float | None = None
        self.offset = start
        self.total: int | None = None

    async def open(self) -> None:
        """Open the first connection.

        Raises:
            UpstreamError: upstream does not send the blob.
        """
        first = await self._connection.enter_async_context(self._way.open(self._position, None))
        self._front, self.offset, self.total = first, first.offset, first.total
        small = (first.total or 0) < self._splitting.from_bytes
        if small or not first.ranged or first.offset != self._position:
            self._ramp = Ramp(1)
            self._position = first.offset

    async def read(self) -> Chunk:
        """Return the next bytes, ``b""`` at the end.

        Raises:
            UpstreamError: upstream does not send the rest.
        """
        self._waiting_since = self._clock()
        try:
            return await self._read()
        finally:
            self._waited, self._waiting_since = self._waiting(), None

    async def aclose(self) -> None:
        """Close all connections; drop the segments in memory."""
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

    async def _read(self) -> Chunk:
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
                    await self._resume(error)
                    continue
            self._position += len(piece)
            return piece

    async def _take(self, head: _Segment) -> Chunk:
        """Return the next bytes of the first segment, ``b""`` if it has ended."""
        try:
            piece = await head.take()
        except TimeoutError:
            _log.debug("%s: a connection is stalled; going back to one", self._way.upstream)
            piece = b""
            self._give_up(head)
        if not piece:
            self._drop(head)
        return piece

    # The front.

    async def _read_front(self) -> Chunk:
        if self._front is None:
            await self._reopen()
        assert self._front is not None, "_reopen has opened it"
        piece = await self._front.read()
        self._note(len(piece))
        if self._ahead and not piece:
            early = self._ahead[0].start - self._position
            raise UnavailableError(self._way.upstream, f"ended {early} bytes early")
        while self._ahead and len(piece) >= (limit := self._ahead[0].start - self._position):
            if self._ahead[0].begun:
                await self._close_front()
                return piece[:limit]
            self._give_up(self._ahead[0])  # the front is faster, and continues
        return piece

    async def _reopen(self) -> None:
        """Open a new front for bytes that no segment has, up to the next segment or the end."""
        self._fronting = True
        stop = self._ahead[0].start if self._ahead else None
        opening = self._way.open(self._position, stop)
        front = await self._connection.enter_async_context(opening)
        if front.offset != self._position or front.total != self.total:
            raise UnavailableError(self._way.upstream, "no longer sends the requested range")
        self._front = front
        self._planned = max(self._planned, self._position)

    async def _close_front(self) -> None:
        self._front, self._fronting = None, False
        await self._connection.aclose()

    async def _resume(self, error: UpstreamError) -> None:
        """Resume after ``error`` if that saves the segments in memory; else raise ``error``."""
        await self._close_front()
        delay = self._backoff.next_delay(self._position)
        if isinstance(error, RateLimitedError):
            # The further connections caused it: a single one would have sent no further request.
            self._retreat()
            delay = None if delay is None else max(delay, error.retry_after)
        elif not (self._ahead and error.transient):
            delay = None
        if delay is None or delay > _MAX_QUIET_SECONDS:
            if self._ahead:
                self._retreat()
            raise error
        _log.debug("%s; resuming at byte %d in %.1f s", error, self._position, delay)
        await asyncio.sleep(delay)

    # The segments.

    def _arrange(self) -> None:
        """Begin new segments, up to the wanted number of connections."""
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
        segment = _Segment(start, stop, slot)
        self._ahead.append(segment)
        task = asyncio.create_task(self._get(segment), name=f"segment {segment.start}")
        self._tasks[task] = segment
        if own:
            self._own_task = task
        task.add_done_callback(self._ended)
        return True

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._own_task = None if self._own_task is task else self._own_task
        if not task.cancelled() and task.exception() is not None:
            return  # left in the list: :meth:`aclose` raises the exception
        del self._tasks[task]
        self._arrange()

    async def _get(self, segment: _Segment) -> None:
        """Download a segment, or end it early where upstream ends it."""
        backoff = Backoff(segment.start)
        try:
            while segment.received < segment.stop:
                try:
                    await self._receive(segment)
                except UpstreamError as error:
                    await asyncio.sleep(self._delay(segment, backoff, error))
        except UpstreamError as error:
            _log.debug("%s; going back to one connection", error)
            self._retreat()
        finally:
            segment.end()
            if not segment.begun:
                self._drop(segment)  # the front fetches its bytes

    def _give_up(self, segment: _Segment) -> None:
        """End a segment that takes too long; the front fetches the missing bytes."""
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
        """Return the delay in seconds before the segment resumes after ``error``.

        Raises:
            UpstreamError: ``error`` itself, if the segment must not resume.
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
                # Upstream ignores Range, though it announced support: one connection still works.
                raise UnavailableError(name, "sent another part than was requested")
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
        self._arrived(count)
        working = sum(segment.begun for segment in self._tasks.values())
        working += self._front is not None
        self._ramp.note(self._clock(), count, working, self._waiting())

    def _waiting(self) -> float:
        """Return the seconds in which the caller has waited for bytes."""
        since = self._waiting_since
        return self._waited + (0.0 if since is None else self._clock() - since)
