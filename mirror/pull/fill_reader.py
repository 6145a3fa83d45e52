"""The state of a growing blob: how many bytes its readers may have, and how they learn of more.

The fill changes the state (:meth:`FillReader.begin` to :meth:`FillReader.fail`); readers wait for
changes (:meth:`FillReader.started` to :meth:`FillReader.piece`).  Readers see the file up to
:attr:`FillReader.visible`, which stays short of the end until the digest is verified.

If another process leads the fill, this one reads the file while it grows (:class:`Following`).  The
processes share only the partial file, its lock and the expected size.  The follower polls them,
which costs less than a connection between the processes, and leaves nothing to clean up when one of
them ends.
"""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from enum import Enum, auto
from typing import Final

from mirror.descriptor import FileRange
from mirror.oci.digest import Digest, Hasher
from mirror.pull.outcome import BrokenOffError
from mirror.pull.policy import (
    HOLD_BACK_BYTES,
    PART_LOOK_SECONDS,
    PART_PATIENCE_SECONDS,
    WAKE_BYTES,
    WAKE_SECONDS,
    arrival_seconds,
    visible_bytes,
)
from mirror.store.interface import BlobStore, PartialBlobReader, PartialStatus
from mirror.upstream.errors import UpstreamError


class State(Enum):
    """The progress of a blob."""

    ASKING = auto()  # upstream's headers have not arrived
    GROWING = auto()
    WHOLE = auto()  # verified; the adoption may still be running
    DECLINED = auto()  # the file does not grow any more; readers fetch the rest themselves
    FAILED = auto()


class FillReader:
    """The state of one growing blob."""

    def __init__(self, digest: Digest) -> None:
        self.digest = digest
        self.state = State.ASKING
        self.total: int | None = None
        self.length = 0
        self.visible = 0
        self._file: FileRange | None = None
        self.hasher: Hasher = digest.hasher()  # has seen the file of a declined blob
        self._error: UpstreamError | None = None
        self._changed = asyncio.Event()
        self._announced = 0
        self._timer: asyncio.TimerHandle | None = None
        self._began: tuple[float, int] | None = None  # the time and the length at the start

    # Called by the fill.

    def own(self, file: FileRange) -> None:
        """Take over the file that readers read from; only while no byte is visible."""
        self.close()
        self._file = file

    def begin(self, total: int | None, length: int) -> None:
        """Record that upstream's headers have arrived; ``length`` bytes are on disk already."""
        self.total = self.total if total is None else total
        self.state = State.GROWING
        self._began = self._began or (asyncio.get_running_loop().time(), length)
        self.show(length)

    def show(self, length: int) -> None:
        """Record that the file has grown to ``length`` bytes."""
        self.length = length
        self.visible = max(self.visible, visible_bytes(length, self.total))
        if self._announced == 0 or self.visible - self._announced >= WAKE_BYTES:
            self._notify()
        elif self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(WAKE_SECONDS, self._notify)

    def be_whole(self, size: int) -> None:
        """Record that the digest is verified."""
        self.total = self.visible = self.length = size
        self.state = State.WHOLE
        self._notify()

    def decline(self, length: int, hasher: Hasher) -> None:
        """End the file at ``length``, before the blob's end; ``hasher`` has seen the whole file."""
        self.visible, self.hasher = length, hasher
        self.state = State.DECLINED
        self._notify()

    def fail(self, error: UpstreamError) -> None:
        """Record that no more bytes will arrive."""
        if self.state not in {State.WHOLE, State.DECLINED}:
            self.state, self._error = State.FAILED, error
        self._notify()

    def close(self) -> None:
        """Close the file, once all readers have ended."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _notify(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._announced = self.visible
        self._changed.set()
        self._changed = asyncio.Event()

    # Called by readers.

    async def started(self) -> None:
        """Wait for upstream's headers, or for the end of the fill.

        Raises:
            UpstreamError: the fill failed before the first byte.
        """
        while self.state is State.ASKING:
            await self._changed.wait()
        if self.state is State.FAILED and self.visible == 0 and self._error is not None:
            raise self._error

    @property
    def has_content(self) -> bool:
        """Whether the file has, or will have, bytes to read."""
        return self.state is not State.DECLINED or self.visible > 0

    async def advance(self, position: int, stop: int | None) -> int:
        """Wait until more than ``position`` bytes are readable; return how many are.

        The end of a range up to ``stop`` waits for the verification too: a client that asked for
        a part must be able to tell that the part was broken off.

        Returns:
            ``position`` itself at the end of the blob, or at the end of a declined file.

        Raises:
            BrokenOffError: the fill failed.
        """
        while (readable := self._readable(stop)) <= position:
            if self.state is State.FAILED:
                raise BrokenOffError(str(self._error)) from self._error
            if self.state in {State.WHOLE, State.DECLINED}:
                return position
            await self._changed.wait()
        return readable

    def _readable(self, stop: int | None) -> int:
        if stop is None or self.state in {State.WHOLE, State.DECLINED}:
            return self._announced
        return min(self._announced, stop - HOLD_BACK_BYTES)

    @property
    def ended(self) -> bool:
        """Whether the blob is verified, or will never be."""
        return self.state in {State.WHOLE, State.DECLINED, State.FAILED}

    async def ends_soon(self) -> bool:
        """Whether the verification comes soon enough for a reader of a part to wait for it."""
        if self.total is None:
            return True  # then clients cannot ask for parts
        return await self._soon(lambda: self.ended, self.total)

    async def reach(self, position: int) -> int:
        """Return how many bytes are readable, if that soon exceeds ``position``; else ``position``.

        Unlike :meth:`advance`, this does not hold back the end of a range.
        """
        await self._soon(lambda: self.ended or self._announced > position, position)
        return max(position, self._announced)

    async def _soon(self, ready: Callable[[], bool], target: int) -> bool:
        """Return whether ``ready`` holds soon; do not wait if byte ``target`` is too far off."""
        clock = asyncio.get_running_loop().time
        deadline = clock() + PART_PATIENCE_SECONDS
        while not ready():
            left, expected = deadline - clock(), self._expected(target, clock())
            if left <= 0 or (expected is not None and expected > left):
                return False
            with suppress(TimeoutError):
                async with asyncio.timeout(min(left, PART_LOOK_SECONDS)):
                    await self._changed.wait()
        return True

    def _expected(self, target: int, now: float) -> float | None:
        if self._began is None:
            return None
        since, before = self._began
        return arrival_seconds(target - self.length, self.length - before, now - since)

    def piece(self, start: int, stop: int) -> FileRange:
        """The bytes of the file from ``start`` to ``stop``."""
        assert self._file is not None, "nothing is visible before there is a file"
        return self._file.part(start, stop)


#: The polling interval: readers of a growing file wait this long anyway (``WAKE_SECONDS``).
_LOOK_SECONDS: Final = 0.02
#: How long to wait for a leader that makes no progress (it may be stopped); after that, readers
#: fetch the rest themselves.  Longer than any leader waits for its upstream.
_PATIENCE_SECONDS: Final = 120.0


class Following:
    """Follows the processes that lead one fill; closed when the fill ends."""

    def __init__(
        self,
        digest: Digest,
        reader: FillReader,
        blobs: BlobStore,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._digest = digest
        self._reader = reader
        self._blobs = blobs
        self._clock = clock
        self._tail: PartialBlobReader | None = None

    async def follow(self) -> bool:
        """Show readers the leader's bytes until it stops leading.

        Return False if the leader makes no progress.

        Raises:
            OSError: the partial file cannot be read.
        """
        if self._tail is None:
            self._tail = await self._blobs.tail(self._digest)
        length, since = -1, self._clock()
        while self._tail is not None:
            status = self._tail.look()
            self._show(self._tail, status)
            if not status.led:
                break
            if status.length != length:
                length, since = status.length, self._clock()
            elif self._clock() - since > _PATIENCE_SECONDS:
                return False
            await asyncio.sleep(_LOOK_SECONDS)
        if not self._reader.visible:
            self.close()  # no client has read from this file: the next one may differ
        return True

    def leads_to(self, file: FileRange) -> bool:
        """Whether ``file`` is the file that readers have bytes of, renamed or not."""
        return self._tail is None or self._tail.content.is_same_file(file)

    async def decline(self) -> None:
        """Let readers fetch the rest themselves: their file will not grow any more.

        Raises:
            OSError: the bytes that they have read cannot be read again.
        """
        length, hasher = 0, self._digest.hasher()
        if self._tail is not None:
            # Only the bytes that readers may have seen: the end is held back until verified.
            length = self._reader.visible
            hasher = await self._tail.hashed(self._digest, length)
        self._reader.decline(length, hasher)

    def close(self) -> None:
        """Stop following."""
        if self._tail is not None:
            self._tail.close()
            self._tail = None

    def _show(self, tail: PartialBlobReader, status: PartialStatus) -> None:
        reader = self._reader
        if status.total is None:
            return  # no answer yet, or no known size: the bytes on disk could be the whole blob
        if reader.state is State.ASKING:
            reader.own(tail.content.duplicate())
            reader.begin(status.total, min(status.length, status.total))
        elif status.length > reader.length:
            reader.show(min(status.length, status.total))
