"""A fill: one download into the store, which all clients read while it grows.

The process owns the fill, not a client.  A fill resumes after a broken connection to upstream.  If
another process leads the download of the blob, the fill follows that process, and takes over when
it stops.  If the blob cannot be stored (no room, a failing disk), the fill is *declined*: each
reader fetches the rest itself, from the byte where the file ends.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterator
from typing import Final, Protocol

from mirror.descriptor import FileRange
from mirror.oci.digest import Digest
from mirror.pull.feed import Feed, Source
from mirror.pull.fill_reader import FillReader, Following, State
from mirror.pull.outcome import DigestMismatchError, wrong_bytes
from mirror.pull.parallel import Stream
from mirror.pull.policy import (
    BATCH_BYTES,
    GROWTH_STEP_BYTES,
    HOLD_BACK_BYTES,
    UNWANTED_BYTES,
    UNWANTED_SECONDS,
    Backoff,
    nearly_done,
)
from mirror.pull.slots import Room
from mirror.spans import NOTHING, current, entered
from mirror.store.interface import (
    BlobStore,
    Chunk,
    IndexUnavailableError,
    NoRoomError,
    PartialBlob,
    PartialBusyError,
)
from mirror.upstream.errors import (
    NonsenseError,
    NotFoundError,
    RangeRefusedError,
    RefusedError,
    RejectedError,
    UnavailableError,
    UpstreamError,
)

_log = logging.getLogger(__name__)
_STORED: Final = frozenset({"stored", "resumed"})
#: Answers to a request for the rest of a blob; upstream may still send all of it.
_NO_RANGE: Final = (NonsenseError, NotFoundError, RefusedError, RejectedError)
_OTHER_SIZE: Final = "now gives the blob another size"


class Observer(Protocol):
    """Receives the events of fills."""

    def fill_started(self) -> None:
        """A download began."""

    def fill_ended(self, upstream: str, result: str) -> None:
        """A download ended; ``result`` is stored, resumed, digest_mismatch or failed."""

    def clients_waiting(self, change: int) -> None:
        """The number of clients that read a growing blob changed by ``change``."""


class Fill:
    """The download of one blob from one source."""

    def __init__(
        self,
        digest: Digest,
        source: Source,
        blobs: BlobStore,
        observer: Observer,
        room: Room,
        feed: Feed,
    ) -> None:
        """Download from ``feed``, whose last place is ``source``."""
        self.digest = digest
        self.source = source
        self.feed = feed
        self.reader = FillReader(digest)
        self.found = False  # the blob was in the store after all
        self.followed = False  # another process leads or led the download
        self.span = NOTHING
        self._upstream = source.registry.name
        self._blobs = blobs
        self._observer = observer
        self._room = room
        self._following = Following(digest, self.reader, blobs)
        self.waiting = 0  # clients that read the blob
        self._allowance: int | None = None  # bytes that may still arrive without a reader
        self._timer: asyncio.TimerHandle | None = None
        self._result = "failed"  # unless the download says otherwise
        self._resumed = False
        self._answered = False  # upstream has begun to send the blob
        self._task: asyncio.Task[None] | None = None

    def start(self, ended: Callable[[], None]) -> None:
        """Start the download; ``ended`` is called when the blob is adopted or given up."""
        self.span = current().child("fill")
        place = {"mirror.upstream": self._upstream, "mirror.repository": self.source.repository}
        self.span.note({**place, "mirror.digest": str(self.digest)})
        self._task = asyncio.create_task(self._run(), name=f"fill {self.digest}")
        self._task.add_done_callback(lambda _: ended())
        self._task.add_done_callback(lambda _: self._close_unread())

    async def stop(self) -> None:
        """Stop the download: keep a partial blob for the next fill, adopt a whole one."""
        if self._task is not None and self.reader.state is not State.WHOLE:
            self._task.cancel()
        await self.over()

    async def over(self) -> None:
        """Wait until the blob is adopted or given up."""
        if self._task is not None:
            await asyncio.wait([self._task])

    def enter(self) -> None:
        """Add a reader."""
        self.waiting += 1
        self.keep()
        self._observer.clients_waiting(+1)

    def keep(self) -> None:
        """Continue without the limits of :meth:`linger`."""
        self._allowance = None
        if self._timer is not None:
            self._timer.cancel()

    def leave(self) -> bool:
        """Remove a reader; return whether the download now runs without readers."""
        self.waiting -= 1
        self._observer.clients_waiting(-1)
        self._close_unread()
        return self.waiting == 0 and not self.reader.ended

    def linger(self) -> None:
        """Continue without readers, for ``UNWANTED_SECONDS`` and ``UNWANTED_BYTES`` at most."""
        self._allowance = UNWANTED_BYTES
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(UNWANTED_SECONDS, self._stop_lingering)

    def give_up(self) -> None:
        """Stop the download, since no client reads it; the next client begins a new fill."""
        if self._task is not None and not self.reader.ended:
            self.reader.fail(UnavailableError(self._upstream, "the download was broken off"))
            self._task.cancel()

    def _close_unread(self) -> None:
        if self.waiting == 0 and self._task is not None and self._task.done():
            self.reader.close()

    def _stop_lingering(self) -> None:
        if not nearly_done(self.reader.length, self.reader.total):
            self.give_up()

    def _arrived(self, count: int) -> None:
        if self._allowance is not None:
            self._allowance -= count
            if self._allowance < 0:
                self._stop_lingering()

    async def _run(self) -> None:
        try:
            with entered(self.span):
                await self._fill()
        except UpstreamError as error:
            self.reader.fail(error)
        except asyncio.CancelledError:
            self.reader.fail(UnavailableError(self._upstream, "the download was broken off"))
        except Exception:
            _log.exception("fill of %s failed", self.digest)
            self.reader.fail(UnavailableError(self._upstream, "the mirror failed, see its log"))
        finally:
            self._following.close()

    async def _fill(self) -> None:
        while True:
            # Look again: the last fill may have ended since, and no other begins in this process.
            stored = await self._blobs.lookup(self.digest)
            if stored is not None:
                return await self._find(stored)
            try:
                partial = await self._blobs.stage(self.digest)
            except PartialBusyError:
                self.followed = True
                if await self._following.follow():
                    continue
                return await self._pass("the process that fills it makes no progress")
            except OSError as error:
                with self._counted():
                    return await self._pass(error)
            return await self._lead(partial)

    async def _find(self, stored: FileRange) -> None:
        self.found = not self.followed
        if self.reader.total not in {None, stored.length}:  # the readers have the other size
            stored.close()
            raise UpstreamError(self._upstream, _OTHER_SIZE)
        if not self.reader.visible:
            self.reader.own(stored)
            self.reader.be_whole(stored.length)
            return
        same = self._following.leads_to(stored)
        stored.close()
        if same:
            self.reader.be_whole(stored.length)
        else:
            await self._pass("the process that filled it started over")

    async def _pass(self, reason: object) -> None:
        _log.debug("%s passes through uncached: %s", self.digest, reason)
        await self._following.decline()

    async def _lead(self, partial: PartialBlob) -> None:
        if not self._following.leads_to(partial.content):
            await asyncio.shield(partial.release(discard=partial.length == 0))
            await self._pass("the process that filled it started over")
            return
        with self._counted():
            self._result = await self._fill_partial(partial)

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        """Report a download that this process leads."""
        self._observer.fill_started()
        try:
            yield
        except DigestMismatchError as error:
            self._result = "digest_mismatch"
            self.feed.mismatched(self.digest, error)
            raise
        finally:
            self.feed.ended(self.digest, stored=self._result in _STORED)
            self._observer.fill_ended(self._upstream, self._result)
            self.span.note({"mirror.result": self._result, "mirror.bytes": self.reader.length})

    async def _fill_partial(self, partial: PartialBlob) -> str:
        discard = False
        if not self.reader.visible:  # else the readers have this file already
            self.reader.own(partial.content.duplicate())
        self._resumed = partial.length > 0
        try:
            await self._download(partial)
            self.reader.be_whole(partial.length)
            return await self._adopt(partial)
        except (OSError, IndexUnavailableError, NoRoomError) as error:
            _log.debug("%s passes through uncached: %s", self.digest, error)
            if isinstance(error, NoRoomError):
                size = self.reader.total or partial.length
                self._room.lacking(self._upstream, self.source.repository, size)
            self.reader.decline(partial.length, partial.hasher)
            discard = True
            return "failed"
        except (DigestMismatchError, RangeRefusedError):
            discard = True
            raise
        finally:
            discard = discard or partial.length == 0
            await asyncio.shield(partial.release(discard=discard))

    async def _adopt(self, partial: PartialBlob) -> str:
        try:
            await partial.adopt()
        except (OSError, IndexUnavailableError) as error:
            _log.debug("%s is served but could not be stored: %s", self.digest, error)
            return "failed"
        self._room.found()
        return "resumed" if self._resumed else "stored"

    async def _download(self, partial: PartialBlob) -> None:
        """Complete the partial file and verify it."""
        backoff = Backoff(partial.length)
        inherited = partial.length > 0  # from an unknown address of the upstream
        ranged = True  # upstream can continue at a byte
        while not (partial.length and partial.verified()):
            opened = False
            try:
                start = partial.length if ranged else 0
                async with self.feed.spread(self.digest, start, self._arrived) as stream:
                    opened = True
                    await self._begin(stream, partial)
                    await self._copy(stream, partial)
                self._check(partial)
                return
            except RangeRefusedError:
                # The file left on disk does not fit the blob; no client has read from it yet.
                if self.reader.state is State.ASKING and partial.length:
                    _log.debug("%s: upstream refuses to resume; starting over", self.digest)
                    await self._restart(partial)
                elif not start:
                    raise
                else:
                    ranged = False
            except DigestMismatchError as error:
                other = await self.feed.blame(self.digest)
                if self.reader.visible or not (other or inherited):
                    raise
                _log.warning("%s; starting over", error)
                inherited = False
                await self._restart(partial)
            except UpstreamError as error:
                if start == partial.length > 0 and self._answered and isinstance(error, _NO_RANGE):
                    _log.debug("%s; asking for the whole blob", error)
                    ranged = False
                    continue
                fruitless = partial.length == backoff.reached
                if opened and (fruitless or isinstance(error, NonsenseError)):
                    self.source.registry.blame(self.digest)
                delay = backoff.next_delay(partial.length)
                if not error.transient or not self._answered or delay is None:
                    raise
                _log.debug("%s; resuming at byte %d in %.1f s", error, partial.length, delay)
                self._resumed = True
                await asyncio.sleep(delay)

    async def _restart(self, partial: PartialBlob) -> None:
        """Discard the bytes of the partial file; no reader has seen any of them."""
        await partial.restart()
        self._resumed = False
        if self.reader.state is State.ASKING:
            self.reader.total = None

    def _check(self, partial: PartialBlob) -> None:
        total = self.reader.total
        if total is not None and partial.length < total:
            raise NonsenseError(self._upstream, f"ended {total - partial.length} bytes early")
        if not partial.verified():
            text = wrong_bytes(self.source.repository, self.digest)
            raise DigestMismatchError(self._upstream, text)

    async def _begin(self, stream: Stream, partial: PartialBlob) -> None:
        known = self.reader.total
        if known is not None and stream.total not in {None, known}:
            # Without any bytes of the blob, nothing tells which of the two addresses is right.
            kind = NonsenseError if partial.length else UpstreamError
            raise kind(self._upstream, _OTHER_SIZE)
        self._answered = True
        self.reader.total = total = stream.total if known is None else known
        # No byte of a small blob is served before the verification. If there are several
        # places to ask, its size is not announced before then either: another place may be needed.
        small = self.feed.several and total is not None and total <= HOLD_BACK_BYTES
        expected = partial.length + GROWTH_STEP_BYTES if stream.total is None else stream.total
        if not await partial.reserve(expected, None if small else total):
            raise NoRoomError("no room for the blob (max_size, min_free)")
        if not small:
            self.reader.begin(stream.total, partial.length)

    async def _copy(self, stream: Stream, partial: PartialBlob) -> None:
        """Write the stream to the disk; collect the next batch while a write is running."""
        skip = partial.length - stream.offset  # > 0: upstream ignored Range, and sends from byte 0
        batch: list[Chunk] = []
        collected = 0
        writing = asyncio.create_task(_nothing())
        try:
            while piece := await stream.read():
                if skip:
                    piece, skip = piece[skip:], max(0, skip - len(piece))
                batch.append(piece)
                collected += len(piece)
                if writing.done() or collected >= BATCH_BYTES:
                    await writing
                    writing = asyncio.create_task(self._write(partial, batch))
                    batch, collected = [], 0
        finally:
            await asyncio.shield(self._drain(writing, partial, batch))

    async def _drain(
        self, writing: Awaitable[None], partial: PartialBlob, batch: list[Chunk]
    ) -> None:
        await writing
        await self._write(partial, batch)

    async def _write(self, partial: PartialBlob, batch: list[Chunk]) -> None:
        size = sum(map(len, batch))
        if not size:
            return
        if self.reader.total is not None and partial.length + size > self.reader.total:
            raise DigestMismatchError(self._upstream, "sent more bytes than it had announced")
        if self.reader.total is None and not await self._grow(partial, size):
            raise NoRoomError("no room for the rest of the blob (max_size, min_free)")
        await partial.append(batch)
        self.reader.show(partial.length)

    async def _grow(self, partial: PartialBlob, size: int) -> bool:
        before, after = partial.length, partial.length + size
        if after // GROWTH_STEP_BYTES == before // GROWTH_STEP_BYTES:
            return True
        return await partial.reserve(after + GROWTH_STEP_BYTES, None)


async def _nothing() -> None:
    """Stand in for a write that is already done."""
