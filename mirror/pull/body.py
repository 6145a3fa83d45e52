"""The body of a blob, for the HTTP server: parts of a file, or bytes as they pass through.

Stored, growing and passing blobs have one interface, :class:`Content`.

A client that mounts an image lazily (eStargz, zstd:chunked) reads the end of a layer first, then
small parts in any order; on a slow line each part would wait for the whole blob.  A part cannot be
verified before the blob is whole.  So it is relayed, and held in memory for a moment for other
clients, but never stored.  A budget per blob limits the cost to upstream (:class:`RangeFetches`).
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import (
    AbstractContextManager,
    AsyncExitStack,
    aclosing,
)
from typing import Final, Protocol

from mirror.descriptor import FileRange
from mirror.lru import Lru
from mirror.oci.digest import Digest, Hasher
from mirror.pull.feed import Source
from mirror.pull.fill_reader import FillReader, State
from mirror.pull.outcome import BrokenOffError, DigestMismatchError, wrong_bytes
from mirror.pull.policy import (
    AHEAD_PIECE_BYTES,
    PASSING_BUFFER_BYTES,
    Backoff,
)
from mirror.pull.singleflight import SingleFlight
from mirror.upstream.errors import (
    NonsenseError,
    RangeRefusedError,
    RateLimitedError,
    UnavailableError,
    UpstreamError,
)
from mirror.upstream.responses import BlobStream

Piece = FileRange | bytes


class Content(Protocol):
    """The body of a blob."""

    @property
    def size(self) -> int | None:
        """The size of the whole blob in bytes, None while it is unknown."""

    @property
    def file(self) -> FileRange | None:
        """The open file of a stored blob; a caller that keeps it must duplicate it."""

    def pieces(self, start: int, stop: int | None) -> AsyncGenerator[Piece, None]:
        """Yield the bytes from ``start`` to ``stop`` (None: to the end) as they become available.

        Raises:
            BrokenOffError: the rest is unavailable, or failed verification.
        """

    async def close(self) -> None:
        """Release the file or the connection."""


class StoredContent:
    """A blob from the cache."""

    def __init__(self, stored: FileRange) -> None:
        self.file = stored
        self.size = stored.length

    async def pieces(self, start: int, stop: int | None) -> AsyncGenerator[Piece, None]:
        """Yield the whole range as one piece."""
        end = self.size if stop is None else stop
        yield self.file.part(start, end)

    async def close(self) -> None:
        """Close the file."""
        self.file.close()


class PassingContent:
    """A blob that cannot be stored: it passes through, and is verified on the way.

    For one client only: other clients need a file to read from.
    """

    file = None

    def __init__(
        self,
        source: Source,
        digest: Digest,
        hasher: Hasher,
        start: int,
        total: int | None = None,
    ) -> None:
        """Continue at byte ``start``; ``hasher`` has seen all bytes before it.

        ``total`` is the size of the blob, if it is known already.
        """
        self._source = source
        self._digest = digest
        self._hasher = hasher
        self._start = start
        self.size = total
        self._stream: BlobStream | None = None
        self._connection = AsyncExitStack()

    async def open(self) -> None:
        """Request the blob, so that its size is known.

        Raises:
            UpstreamError: upstream does not send the blob.
        """
        await self._open(self._start)

    async def _open(self, start: int, stop: int | None = None) -> BlobStream:
        opening = self._source.open(self._digest, start, stop)
        stream = await self._connection.enter_async_context(opening)
        if self.size is not None and stream.total not in {None, self.size}:
            name = self._source.registry.name
            raise NonsenseError(name, "now gives the blob another size")
        self.size = stream.total if self.size is None else self.size
        self._stream = stream
        return stream

    async def pieces(self, start: int, stop: int | None) -> AsyncGenerator[Piece, None]:
        """Yield what upstream sends; the last piece of a whole blob waits for the verification."""
        whole = start == self._start and stop in {None, self.size}
        try:
            async for piece in self._verified() if whole else self._stretch(start, stop):
                yield piece
        except UpstreamError as error:
            raise BrokenOffError(str(error)) from error

    async def _verified(self) -> AsyncIterator[bytes]:
        held = b""
        async for piece in self._stretch(self._start, None):
            self._hasher.update(piece)
            if held:
                yield held
            held = piece
        if not self._digest.matches(self._hasher):
            registry = self._source.registry
            registry.blame(self._digest)
            text = wrong_bytes(self._source.repository, self._digest)
            error = DigestMismatchError(registry.name, text)
            registry.log.mismatched(self._digest, error)
            raise error
        if held:
            yield held

    async def _stretch(self, start: int, stop: int | None) -> AsyncIterator[bytes]:
        """Yield the bytes from ``start`` to ``stop``; resume after a broken connection."""
        position = start
        backoff = Backoff(start)
        while True:
            opened = False
            try:
                stream = await self._at(position, stop)
                opened = True
                async for piece in _cut(stream, position, stop):
                    position += len(piece)
                    yield piece
                end = stream.total if stop is None else stop
                if end is None or position >= end:
                    return
                raise UnavailableError(self._source.registry.name, "ended early")
            except UpstreamError as error:
                if (opened and position == backoff.reached) or isinstance(error, NonsenseError):
                    self._source.registry.blame(self._digest)
                delay = backoff.next_delay(position)
                if not error.transient or delay is None:
                    raise
                await self._connection.aclose()
                self._stream = None
                await asyncio.sleep(delay)

    async def _at(self, position: int, stop: int | None) -> BlobStream:
        if self._stream is not None and self._stream.offset <= position == self._start:
            return self._stream
        await self._connection.aclose()
        return await self._open(position, stop)

    async def close(self) -> None:
        """Close the connection to upstream."""
        await self._connection.aclose()


async def _cut(stream: BlobStream, start: int, stop: int | None) -> AsyncIterator[bytes]:
    """Yield the bytes from ``start`` to ``stop`` of a stream that may begin before ``start``."""
    position = stream.offset
    while piece := await stream.read():
        end = position + len(piece)
        wanted = piece[max(0, start - position) : None if stop is None else stop - position]
        position = end
        if wanted:
            yield wanted
        if stop is not None and position >= stop:
            return


_log = logging.getLogger(__name__)
_Key = tuple[Digest, int, int, str]

#: The most pieces, and bytes of them, in memory, for all blobs together.
_PIECES: Final = 100_000
_PIECES_BYTES: Final = 32 * 1024 * 1024
#: The assumed cost of a failed fetch: upstream sends as much as fits into buffers on the way.
_FAILURE_BYTES: Final = 256 * 1024
#: Maximum number of blobs whose cost is tracked.
_BLOBS: Final = 4096


class RangeFetches:
    """Pieces of blobs, by digest, start, stop and upstream; concurrent clients share a fetch.

    The pieces are not verified: a piece from one upstream is not served for another upstream.
    """

    def __init__(self, share: float) -> None:
        """Fetch at most this ``share`` of a blob in addition to its fill."""
        self._share = share
        self._spent: Lru[Digest, int] = Lru(_BLOBS)
        self._pieces: Lru[_Key, bytes] = Lru(_PIECES, _PIECES_BYTES)
        self._flights: SingleFlight[_Key, bytes | None] = SingleFlight("part")

    async def lookup(
        self, source: Source, digest: Digest, start: int, stop: int, total: int
    ) -> bytes | None:
        """Return the first bytes of a range of a blob of ``total`` bytes, at most 1 MiB.

        None if they cannot be fetched: then the reader has to wait for the fill.
        """
        key = (digest, start, min(stop, start + AHEAD_PIECE_BYTES), source.registry.name)
        held = self._pieces.get(key)
        if held is not None:
            return held
        piece, _ = await self._flights.join(key, lambda: self._fetch(source, key, total))
        return piece

    def forget(self, digest: Digest, *, spent: bool) -> None:
        """Drop the pieces of a blob whose fill has ended; if ``spent``, reset its cost too."""
        for key in self._pieces:
            if key[0] == digest:
                self._pieces.pop(key)
        if spent:
            self._spent.pop(digest)

    async def close(self) -> None:
        """Cancel all requests."""
        await self._flights.close()

    async def _fetch(self, source: Source, key: _Key, total: int) -> bytes | None:
        digest, start, stop, _ = key
        slot = self._slot(source, key, total)
        if slot is None:
            return None
        try:
            with slot:
                piece = await self._read(source, key, total)
        except UpstreamError as error:
            _log.debug("%s; bytes %d-%d of %s wait for the fill", error, start, stop, digest)
            if isinstance(error, RateLimitedError):
                source.slots.calm(source.registry.name)
            refused = isinstance(error, RangeRefusedError)
            cost = int(total * self._share) if refused else _FAILURE_BYTES
            self._spent.put(digest, (self._spent.get(digest) or 0) + cost)
            return None
        self._pieces.put(key, piece, len(piece))
        return piece

    def _slot(self, source: Source, key: _Key, total: int) -> AbstractContextManager[None] | None:
        """A slot for one more connection, None if the budget is spent or no slot is free."""
        digest, start, stop, _ = key
        cost = (self._spent.get(digest) or 0) + stop - start
        if cost > int(total * self._share):
            return None
        slot = source.slots.try_taken(source.registry.name)
        if slot is not None:
            self._spent.put(digest, cost)
        return slot

    async def _read(self, source: Source, key: _Key, total: int) -> bytes:
        digest, start, stop, _ = key
        opening = source.registry.open_blob(
            source.repository, digest, start, stop, PASSING_BUFFER_BYTES
        )
        piece = bytearray()
        async with opening as stream:
            if stream.offset != start or stream.total != total:
                raise RangeRefusedError(source.registry.name, "does not send the requested range")
            while len(piece) < stop - start and (arrived := await stream.read()):
                piece += arrived
        if len(piece) != stop - start:
            raise UnavailableError(source.registry.name, "sent another part than was requested")
        return bytes(piece)


class GrowingContent:
    """The body of a growing blob for one client; ``left`` is called when the client is done."""

    file = None

    def __init__(
        self, reader: FillReader, source: Source, ahead: RangeFetches, left: Callable[[], None]
    ) -> None:
        self._reader = reader
        self._source = source
        self._ahead = ahead
        self._left = left
        self._remainder: PassingContent | None = None

    @property
    def size(self) -> int | None:
        """The size of the blob in bytes, None where upstream did not give it."""
        return self._reader.total

    async def pieces(self, start: int, stop: int | None) -> AsyncGenerator[Piece, None]:
        """Yield the file as it grows, then the rest that could not be stored.

        A part whose verification would take too long is relayed from upstream, unverified.
        """
        position = start
        if stop is not None:
            async with aclosing(self._relayed(start, stop)) as relayed:
                async for piece in relayed:
                    yield piece
                    position += piece.length if isinstance(piece, FileRange) else len(piece)
        while stop is None or position < stop:
            visible = await self._reader.advance(position, stop)
            if visible == position:
                break
            end = visible if stop is None else min(visible, stop)
            yield self._reader.piece(position, end)
            position = end
        if self._reader.state is State.DECLINED and self._remainder is None:
            reader, hasher = self._reader, self._reader.hasher.copy()
            self._remainder = PassingContent(
                self._source, reader.digest, hasher, reader.visible, reader.total
            )
        if self._remainder is not None and (stop is None or position < stop):
            async for piece in self._remainder.pieces(position, stop):
                yield piece

    async def _relayed(self, start: int, stop: int) -> AsyncGenerator[Piece, None]:
        """Yield parts unverified while the verification of the whole blob is too far off."""
        reader, position = self._reader, start
        while position < stop and not await reader.ends_soon():
            here = min(await reader.reach(position), stop)
            if here > position:
                yield reader.piece(position, here)
                position = here
                continue
            assert reader.total is not None, "a blob of unknown size ends soon"
            piece = await self._ahead.lookup(
                self._source, reader.digest, position, stop, reader.total
            )
            if piece is None:
                await reader.advance(position, None)
                continue
            yield piece
            position += len(piece)

    async def close(self) -> None:
        """Leave the fill, and close this client's own connection to upstream."""
        if self._remainder is not None:
            await self._remainder.close()
        self._left()
