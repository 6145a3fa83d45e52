"""The body of a blob, for the HTTP server: parts of a file, or bytes as they pass through.

Stored, growing and passing blobs have one interface, :class:`Content`.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import (
    AbstractContextManager,
    AsyncExitStack,
    aclosing,
    asynccontextmanager,
)
from dataclasses import dataclass
from typing import Protocol

from mirror.descriptor import FileRange
from mirror.oci.digest import Digest, Hasher
from mirror.pull.outcome import BrokenOffError, DigestMismatchError, wrong_bytes
from mirror.pull.parallel import Segments
from mirror.pull.policy import PASSING_BUFFER_BYTES, Backoff, Splitting
from mirror.pull.slots import Slots
from mirror.upstream.endpoints import Endpoints
from mirror.upstream.errors import NonsenseError, UnavailableError, UpstreamError
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


@dataclass(frozen=True, slots=True)
class Source:
    """The source of a blob: a repository of an upstream."""

    registry: Endpoints
    repository: str
    slots: Slots

    @asynccontextmanager
    async def open(
        self, digest: Digest, start: int, stop: int | None = None
    ) -> AsyncIterator[BlobStream]:
        """Wait for a slot, then request a blob that passes through; see ``open_blob``.

        Raises:
            UpstreamError: upstream does not send the blob.
        """
        async with (
            self.slots.taken(self.registry.name),
            self.registry.open_blob(
                self.repository, digest, start, stop, PASSING_BUFFER_BYTES
            ) as stream,
        ):
            yield stream

    @asynccontextmanager
    async def spread(
        self, digest: Digest, start: int, arrived: Callable[[int], None]
    ) -> AsyncIterator[Segments]:
        """Like :meth:`open`, but add connections as long as they make the download faster.

        ``arrived`` is called with the size of each piece that arrives, in any order.

        Raises:
            UpstreamError: upstream does not send the blob.
        """
        clock = asyncio.get_running_loop().time
        async with (
            self.slots.taken(self.registry.name),
            aclosing(Segments(_BlobFetcher(self, digest, arrived), start, clock)) as stream,
        ):
            await stream.open()
            yield stream

    # See :class:`mirror.pull.feed.Feed`.

    @property
    def several(self) -> bool:
        return self.registry.several

    @property
    def place(self) -> str:
        return ""

    @property
    def leads(self) -> bool:
        return True

    def lead(self) -> bool:
        return True

    async def blame(self, digest: Digest) -> bool:
        return self.registry.blame(digest)

    def mismatched(self, digest: Digest, error: UpstreamError) -> None:
        self.registry.log.mismatched(digest, error)

    def ended(self, digest: Digest, *, stored: bool) -> None:
        pass


@dataclass(frozen=True, slots=True)
class _BlobFetcher:
    """Requests parts of a blob for its fill."""

    source: Source
    digest: Digest
    arrived: Callable[[int], None]

    @property
    def upstream(self) -> str:
        return self.source.registry.name

    @property
    def splitting(self) -> Splitting:
        return self.source.slots.splitting

    @asynccontextmanager
    async def open(self, start: int, stop: int | None) -> AsyncIterator["_Watched"]:
        repository = self.source.repository
        async with self.source.registry.open_blob(repository, self.digest, start, stop) as stream:
            yield _Watched(stream, self.arrived)

    def further(self) -> AbstractContextManager[None] | None:
        return self.source.slots.try_taken(self.upstream)

    def calm(self) -> None:
        self.source.slots.calm(self.upstream)


class _Watched:
    """A stream that reports the size of each piece."""

    def __init__(self, stream: BlobStream, arrived: Callable[[int], None]) -> None:
        self._stream = stream
        self._arrived = arrived
        self.offset, self.total, self.ranged = stream.offset, stream.total, stream.ranged

    async def read(self) -> bytes:
        """Return the next bytes, ``b""`` at the end.

        Raises:
            UpstreamError: this stream cannot deliver the rest.
        """
        piece = await self._stream.read()
        self._arrived(len(piece))
        return piece


class StoredContent:
    """A blob from the cache."""

    def __init__(self, stored: FileRange) -> None:
        self._stored = stored

    @property
    def size(self) -> int:
        """The size of the blob, in bytes."""
        return self._stored.length

    @property
    def file(self) -> FileRange:
        """See :class:`Content`."""
        return self._stored

    async def pieces(self, start: int, stop: int | None) -> AsyncGenerator[Piece, None]:
        """Yield the whole range as one piece."""
        end = self.size if stop is None else stop
        yield self._stored.part(start, end)

    async def close(self) -> None:
        """Close the file."""
        self._stored.close()


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
        self._total = total
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
        if self._total is not None and stream.total not in {None, self._total}:
            name = self._source.registry.name
            raise NonsenseError(name, "now gives the blob another size")
        self._total = stream.total if self._total is None else self._total
        self._stream = stream
        return stream

    @property
    def size(self) -> int | None:
        """The size of the blob in bytes, None until it is known."""
        return self._total

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
