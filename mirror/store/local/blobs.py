"""The stored blobs and their partial files: lookup, staging, and adoption."""

import errno
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from typing import Protocol, TypeVar

from mirror.descriptor import FileRange
from mirror.oci.digest import Digest
from mirror.store.local.eviction import Reservations
from mirror.store.local.layout import BLOBS, PRIVATE_BLOBS, Layout, ObjectKey, origin_mark
from mirror.store.local.objects import Objects
from mirror.store.local.partial import Partial, PartialReader
from mirror.threads import opened_or_closed, run_in

R = TypeVar("R")


class _Run(Protocol):
    def __call__(self, function: Callable[[], R], /) -> Awaitable[R]: ...


class StagedBlob(Partial):
    """See :class:`mirror.store.interface.PartialBlob`."""

    def __init__(
        self, layout: Layout, key: ObjectKey, origin: str, objects: Objects, run: _Run
    ) -> None:
        """As for :class:`Partial`; ``run`` runs blocking work in a thread."""
        super().__init__(layout.partial_of(key, origin), key.digest)
        self._key = key
        self._origin = origin
        self._objects = objects
        self._run = run
        Reservations(layout.reservations).forget(self.path.name)  # of a dead leader

    async def reserve(self, size: int, total: int | None) -> bool:
        return await self._objects.reserve(self, size, total)

    async def append(self, pieces: Sequence[bytes]) -> None:
        await self._run(lambda: self.write(pieces))

    async def restart(self) -> None:
        await self._run(self.truncate)

    async def adopt(self) -> None:
        await self._run(self.flush)
        await self._objects.adopt(self._key, self, origin=self._origin)

    async def release(self, *, discard: bool = False) -> None:
        await self._objects.release(self)
        if discard:
            await self._run(self.discard)
        await self._run(self.close)


class Blobs:
    """See :class:`mirror.store.interface.BlobStore`."""

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
        if not self.private:
            return self
        parts = (self._layout, self._objects, self._threads)
        return Blobs(*parts, private=True, origin=origin_mark(upstream))

    async def lookup(self, digest: Digest) -> FileRange | None:
        stored = await self._objects.lookup(ObjectKey(BLOBS, digest))
        if stored is None and self.private:
            stored = await self._objects.lookup(self._key(digest), self._origin)
        return None if stored is None else stored.content

    def _key(self, digest: Digest) -> ObjectKey:
        return ObjectKey(PRIVATE_BLOBS if self.private else BLOBS, digest)

    async def stage(self, digest: Digest) -> "StagedBlob":
        key = self._key(digest)

        async def staged() -> StagedBlob:
            staging = self._run(
                lambda: StagedBlob(self._layout, key, self._origin, self._objects, self._run)
            )
            return await opened_or_closed(staging, StagedBlob.close)

        try:
            return await staged()
        except OSError as error:
            # Without free inodes even an empty file cannot be created: evict first.
            if error.errno != errno.ENOSPC or not await self._objects.make_room(0):
                raise
        return await staged()

    async def tail(self, digest: Digest) -> PartialReader | None:
        path = self._layout.partial_of(self._key(digest), self._origin)
        reservations = Reservations(self._layout.reservations)

        def total() -> int | None:
            reservation = reservations.lookup(path.name)
            return None if reservation is None else reservation.total

        try:
            opening = self._run(lambda: PartialReader(path, total, self._run))
            return await opened_or_closed(opening, PartialReader.close)
        except FileNotFoundError:
            return None

    def touch(self, digest: Digest) -> None:
        self._objects.touch(self._key(digest))

    async def _run(self, function: Callable[[], R]) -> R:
        with self._objects.health.watching():
            return await run_in(self._threads, function)
