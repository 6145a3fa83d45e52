"""The stored blobs and their partial files: lookup, staging, and adoption."""

import asyncio
import errno
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import TypeVar

from mirror.descriptor import FileRange
from mirror.oci.digest import Digest, Hasher
from mirror.store.local.layout import BLOBS, PRIVATE_BLOBS, Layout, ObjectKey, origin_mark
from mirror.store.local.objects import Objects
from mirror.store.local.opening import kept
from mirror.store.local.partial import Partial, PartialReader
from mirror.store.local.reservations import Reservations

R = TypeVar("R")


class Blobs:
    """The blobs of the cache, and their partial files."""

    def __init__(
        self,
        layout: Layout,
        objects: Objects,
        threads: Executor,
        *,
        private: bool = False,
        origin: str = "",
    ) -> None:
        """``threads`` runs the work that hashes, writes or flushes.

        New blobs are public or ``private``; private blobs belong to one upstream (``origin``).
        A private lookup also finds public blobs; a public lookup never finds private blobs.
        """
        self.private = private
        self._origin = origin
        self._layout = layout
        self._objects = objects
        self._threads = threads

    def of(self, upstream: str) -> "Blobs":
        """Return the blobs that ``upstream`` may serve: public ones, and its own private ones."""
        if not self.private:
            return self
        parts = (self._layout, self._objects, self._threads)
        return Blobs(*parts, private=True, origin=origin_mark(upstream))

    async def lookup(self, digest: Digest) -> FileRange | None:
        """Open a stored blob, or None; the caller closes it."""
        stored = await self._objects.lookup(ObjectKey(BLOBS, digest))
        if stored is None and self.private:
            stored = await self._objects.lookup(self._key(digest))
            if stored is not None and stored.origin != self._origin:
                stored.close()
                return None
        return None if stored is None else stored.content

    def _key(self, digest: Digest) -> ObjectKey:
        return ObjectKey(PRIVATE_BLOBS if self.private else BLOBS, digest)

    def _partial_of(self, digest: Digest) -> Path:
        return self._layout.partial_of(self._key(digest), self._origin)

    async def stage(self, digest: Digest) -> Partial:
        """Become the leader of a blob's fill, and continue where the last leader stopped.

        Raises:
            PartialBusyError: another process is the leader.
            OSError: the file cannot be opened or read.
        """
        path = self._partial_of(digest)

        async def staged() -> Partial:
            return await kept(self._run(lambda: self._staged(path, digest)), Partial.close)

        try:
            return await staged()
        except OSError as error:
            # Without free inodes even an empty file cannot be created: evict first.
            if error.errno != errno.ENOSPC or not await self._objects.make_room(0):
                raise
        return await staged()

    def _staged(self, path: Path, digest: Digest) -> Partial:
        partial = Partial(path, digest)
        Reservations(self._layout.expected).forget(path.name)  # of a dead leader
        return partial

    async def tail(self, digest: Digest) -> PartialReader | None:
        """Open the partial file that another process fills; None if that fill has just ended.

        Raises:
            OSError: the file cannot be opened.
        """
        path = self._partial_of(digest)
        expected = Reservations(self._layout.expected)

        def total() -> int | None:
            expectation = expected.lookup(path.name)
            return None if expectation is None else expectation.total

        try:
            return await kept(self._run(lambda: PartialReader(path, total)), PartialReader.close)
        except FileNotFoundError:
            return None

    async def hashed(self, tail: PartialReader, digest: Digest, length: int) -> Hasher:
        """Hash the first ``length`` bytes of a followed file.

        Raises:
            OSError: the file cannot be read, or is shorter.
        """
        return await self._run(lambda: tail.hashed(digest, length))

    async def reserve(self, partial: Partial, size: int, total: int | None) -> bool:
        """Reserve space for a partial file to grow to ``size`` bytes; False if there is none.

        ``total`` is the size of the blob in bytes, None if unknown.

        Raises:
            OSError, IndexUnavailableError: the disk or the index cannot be used.
        """
        return await self._objects.reserve(partial, size, total)

    async def append(self, partial: Partial, pieces: Sequence[bytes]) -> None:
        """Write and hash the next bytes.

        Raises:
            OSError: the write failed.
        """
        await self._run(lambda: partial.append(pieces))

    async def restart(self, partial: Partial) -> None:
        """Discard the bytes so far.  The file must not have readers.

        Raises:
            OSError: the file cannot be truncated.
        """
        await self._run(partial.restart)

    async def adopt(self, partial: Partial) -> None:
        """Flush a verified partial file and make it a stored blob.

        Raises:
            OSError, IndexUnavailableError: the blob could not be stored.
        """
        await self._run(partial.flush)
        key = self._key(partial.digest)
        await self._objects.adopt(key, partial, origin=self._origin)

    async def release(self, partial: Partial, *, discard: bool = False) -> None:
        """End a fill: keep the bytes for the next leader, or discard them."""
        await self._objects.release(partial)
        if discard:
            await self._run(partial.discard)
        await self._run(partial.close)

    def touch(self, digest: Digest) -> None:
        """Record a use of the blob."""
        self._objects.touch(self._key(digest))

    async def forget(self, digest: Digest) -> bool:
        """Remove a blob; return True if it was stored."""
        return await self._objects.forget(self._key(digest))

    async def _run(self, function: Callable[[], R]) -> R:
        with self._objects.alarm.watching():
            return await asyncio.get_running_loop().run_in_executor(self._threads, function)
