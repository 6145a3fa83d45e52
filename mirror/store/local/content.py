"""The stored blobs and manifests by digest.

Blobs: lookup, staging of their partial files, and adoption.  Manifests: small, immutable, verified
at every read from disk.
"""

import asyncio
import errno
import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from typing import Final, Protocol, TypeVar
from weakref import WeakValueDictionary

from mirror.descriptor import FileRange
from mirror.oci.digest import Digest
from mirror.shares import Hold, Limits, Shares
from mirror.store.interface import Chunk, Manifest, NoRoomError
from mirror.store.local.entry import OpenObject
from mirror.store.local.eviction import Reservations
from mirror.store.local.layout import (
    BLOBS,
    MANIFESTS,
    PRIVATE_BLOBS,
    PRIVATE_MANIFESTS,
    Layout,
    ObjectKey,
    origin_mark,
)
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

    async def append(self, pieces: Sequence[Chunk]) -> None:
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


Watcher = Callable[[ObjectKey], Awaitable[None]]

_NOWAIT: Final = getattr(os, "RWF_NOWAIT", None)  # Linux
_SMALL_BYTES: Final = 64 * 1024
_UNBOUNDED: Final = Limits(sys.maxsize, 0, 0.0)


class Manifests:
    """See :class:`mirror.store.interface.ManifestStore`.  A damaged manifest is removed."""

    def __init__(
        self,
        layout: Layout,
        objects: Objects,
        threads: Executor,
        *,
        private: bool = False,
        origin: str = "",
        answers: Shares | None = None,
    ) -> None:
        """``threads`` runs the blocking work; ``private`` and ``origin`` as for blobs.

        ``answers`` limits the memory for large manifests; None means unlimited.
        """
        self._answers = answers or Shares("answer", _UNBOUNDED)
        self._large: WeakValueDictionary[ObjectKey, Manifest] = WeakValueDictionary()
        self._reading: WeakValueDictionary[ObjectKey, asyncio.Lock] = WeakValueDictionary()
        self._private = private
        self._origin = origin
        self._layout = layout
        self._objects = objects
        self._threads = threads
        self._watchers: list[Watcher] = []

    def watch(self, watcher: Watcher) -> None:
        """Call ``watcher`` for every manifest that is stored."""
        self._watchers.append(watcher)

    def of(self, upstream: str) -> "Manifests":
        if not self._private:
            return self
        parts = (self._layout, self._objects, self._threads)
        own = Manifests(*parts, private=True, origin=origin_mark(upstream), answers=self._answers)
        own._watchers = self._watchers  # shared: a watcher is called for both
        return own

    async def lookup(self, digest: Digest) -> Manifest | None:
        found = await self._lookup(ObjectKey(MANIFESTS, digest))
        if found is not None or not self._private:
            return found
        return await self._lookup(self._key(digest))

    async def _lookup(self, key: ObjectKey) -> Manifest | None:
        digest = key.digest
        stored = await self._objects.lookup(key, self._origin)
        if stored is None:
            return None
        if stored.content.length > _SMALL_BYTES:
            return await self._lookup_large(key, stored)
        # Hashing 4 KiB takes 4 us, and saves a flush to disk per stored manifest.
        try:
            body = _at_hand(stored.content)
            if body is None:
                body = await self._run(stored.content.read)
        finally:
            stored.close()
        if Digest.of(body, digest.algorithm) != digest:
            await self._objects.forget(key)
            return None
        return Manifest(digest, stored.entry.media_type, body)

    async def _lookup_large(self, key: ObjectKey, stored: OpenObject) -> Manifest | None:
        """Return a large manifest; concurrent requests share one copy in memory."""
        reading = self._reading.setdefault(key, asyncio.Lock())
        try:
            async with reading:
                hold = self._answers.try_hold("", stored.content.length)
                if hold is not None or key in self._large:
                    return await self._shared(key, stored, hold)
            # Outside the lock: a client at its limit must not block other clients.
            hold = await self._answers.hold("", stored.content.length)
            async with reading:
                return await self._shared(key, stored, hold)
        finally:
            stored.close()

    async def _shared(
        self, key: ObjectKey, stored: OpenObject, hold: Hold | None
    ) -> Manifest | None:
        if (shared := self._large.get(key)) is not None:
            return shared
        body = await self._run(lambda: _checked(stored.content, key.digest))
        if body is None:
            await self._objects.forget(key)
            return None
        manifest = self._large[key] = Manifest(key.digest, stored.entry.media_type, body, hold)
        return manifest

    def _key(self, digest: Digest) -> ObjectKey:
        return ObjectKey(PRIVATE_MANIFESTS if self._private else MANIFESTS, digest)

    async def put(self, manifest: Manifest) -> None:
        key = self._key(manifest.digest)
        if not await self._objects.make_room(len(manifest.body)):
            raise NoRoomError(f"no room for {key}")
        with self._objects.health.watching():
            writing = self._run(lambda: self._write(key, manifest))
            partial = await opened_or_closed(writing, Partial.close)
        try:
            await self._objects.adopt(key, partial, manifest.media_type, self._origin)
        finally:
            await self._run(partial.close)
        for watcher in self._watchers:
            await watcher(key)

    def _write(self, key: ObjectKey, manifest: Manifest) -> Partial:
        partial = Partial(self._layout.partial_of(key, self._origin), manifest.digest)
        try:
            partial.truncate()
            partial.write([manifest.body])
        except OSError:
            partial.discard()
            partial.close()
            raise
        return partial

    def touch(self, digest: Digest) -> None:
        self._objects.touch(self._key(digest))

    async def _run(self, function: Callable[[], R]) -> R:
        return await run_in(self._threads, function)


def _at_hand(stored: FileRange) -> bytes | None:
    """Read a small manifest if it is in the page cache; a thread hop costs ten times more."""
    if _NOWAIT is None:
        return None
    buffer = bytearray(stored.length)
    try:
        with stored.descriptor as number:
            whole = os.preadv(number, [buffer], 0, _NOWAIT) == stored.length
    except OSError:  # not in the page cache, or RWF_NOWAIT is not supported
        return None
    return bytes(buffer) if whole else None


def _checked(stored: FileRange, digest: Digest) -> bytes | None:
    """Return the bytes of a manifest; None if they do not hash to its digest."""
    body = stored.read()
    return body if Digest.of(body, digest.algorithm) == digest else None
