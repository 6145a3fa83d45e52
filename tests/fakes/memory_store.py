"""A store in memory, as ``mirror.store.interface`` describes it; for tests that need no disk.

Blobs are anonymous files, because readers and the HTTP server read from descriptors.
"""

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from mirror.descriptor import Descriptor, FileRange
from mirror.oci.digest import Digest, Hasher
from mirror.store.interface import (
    MOST_PAGE_BYTES,
    Chunk,
    Link,
    Manifest,
    NoRoomError,
    Page,
    PartialBusyError,
    PartialStatus,
)

#: An upstream for private objects, empty for public ones; and a digest.
_Key = tuple[str, Digest]


def _anonymous_file() -> FileRange:
    with tempfile.TemporaryFile() as file:
        return FileRange(Descriptor(os.dup(file.fileno())), 0, 0)


class _Partial:
    """The bytes of one fill; they stay when the leader releases them."""

    def __init__(self, digest: Digest) -> None:
        self.digest = digest
        self.content = _anonymous_file()
        self.hasher: Hasher = digest.hasher()
        self.total: int | None = None
        self.led = False

    @property
    def length(self) -> int:
        return self.content.length


@dataclass
class _Space:
    """What all parts of one store share; ``room`` is the number of bytes that fit."""

    room: int
    blobs: dict[_Key, FileRange] = field(default_factory=dict)
    partials: dict[_Key, _Partial] = field(default_factory=dict)
    manifests: dict[_Key, Manifest] = field(default_factory=dict)

    def has_room(self, size: int, but: _Partial | None = None) -> bool:
        stored = sum(blob.length for blob in self.blobs.values())
        partial = sum(each.length for each in self.partials.values() if each is not but)
        return stored + partial + size <= self.room

    def close(self) -> None:
        for each in (*self.blobs.values(), *(each.content for each in self.partials.values())):
            each.close()


class MemoryPartial:
    """See :class:`mirror.store.interface.PartialBlob`."""

    def __init__(self, space: _Space, key: _Key) -> None:
        self._space = space
        self._key = key
        self._partial = space.partials.setdefault(key, _Partial(key[1]))
        if self._partial.led:
            raise PartialBusyError(f"{key[1]} is being filled elsewhere")
        self._partial.led = True
        self._partial.total = None

    @property
    def length(self) -> int:
        return self._partial.length

    @property
    def hasher(self) -> Hasher:
        return self._partial.hasher

    @property
    def content(self) -> FileRange:
        return self._partial.content

    def verified(self) -> bool:
        return self._partial.digest.matches(self._partial.hasher)

    async def reserve(self, size: int, total: int | None) -> bool:
        if not self._space.has_room(size, but=self._partial):
            return False
        self._partial.total = total
        return True

    async def append(self, pieces: Sequence[Chunk]) -> None:
        data = b"".join(pieces)
        with self.content.descriptor as number:
            os.pwrite(number, data, self.length)
        self._partial.hasher.update(data)
        self._partial.content = replace(self.content, length=self.length + len(data))

    async def restart(self) -> None:
        with self.content.descriptor as number:
            os.ftruncate(number, 0)
        self._partial.hasher = self._partial.digest.hasher()
        self._partial.content = replace(self.content, length=0)

    async def adopt(self) -> None:
        upstream, digest = self._key
        former = [self._space.blobs.pop(self._key, None)]
        if not upstream:
            private = [key for key in self._space.blobs if key[1] == digest]
            former += map(self._space.blobs.pop, private)
        for blob in filter(None, former):
            blob.close()
        self._space.blobs[self._key] = self.content.duplicate()

    async def release(self, *, discard: bool = False) -> None:
        self._partial.led = False
        if discard or self._key in self._space.blobs:
            self._space.partials.pop(self._key).content.close()


class MemoryReader:
    """See :class:`mirror.store.interface.PartialBlobReader`."""

    def __init__(self, partial: _Partial) -> None:
        self._partial = partial
        self.content = partial.content.duplicate()

    def look(self) -> PartialStatus:
        self.content = replace(self.content, length=self._partial.length)
        return PartialStatus(self._partial.length, self._partial.total, self._partial.led)

    async def hashed(self, digest: Digest, length: int) -> Hasher:
        data = self.content.part(0, length).read()
        if len(data) < length:
            raise OSError("the file became shorter")
        hasher = digest.hasher()
        hasher.update(data)
        return hasher

    def close(self) -> None:
        self.content.close()


class MemoryBlobs:
    """See :class:`mirror.store.interface.BlobStore`."""

    def __init__(self, space: _Space, *, private: bool = False, origin: str = "") -> None:
        self.private = private
        self.touched: list[Digest] = []
        self._space = space
        self._origin = origin

    def of(self, upstream: str) -> "MemoryBlobs":
        if not self.private:
            return self
        return MemoryBlobs(self._space, private=True, origin=upstream)

    async def lookup(self, digest: Digest) -> FileRange | None:
        stored = self._space.blobs.get(("", digest)) or self._space.blobs.get(self._key(digest))
        return None if stored is None else stored.duplicate()

    def _key(self, digest: Digest) -> _Key:
        return (self._origin or "private" if self.private else "", digest)

    async def stage(self, digest: Digest) -> MemoryPartial:
        return MemoryPartial(self._space, self._key(digest))

    async def tail(self, digest: Digest) -> MemoryReader | None:
        found = self._space.partials.get(self._key(digest))
        return None if found is None else MemoryReader(found)

    def touch(self, digest: Digest) -> None:
        self.touched.append(digest)


class MemoryManifests:
    """See :class:`mirror.store.interface.ManifestStore`."""

    def __init__(self, space: _Space, *, private: bool = False, origin: str = "") -> None:
        self.touched: list[Digest] = []
        self._space = space
        self._private = private
        self._origin = origin

    def of(self, upstream: str) -> "MemoryManifests":
        if not self._private:
            return self
        return MemoryManifests(self._space, private=True, origin=upstream)

    async def lookup(self, digest: Digest) -> Manifest | None:
        public = self._space.manifests.get(("", digest))
        return public or self._space.manifests.get(self._key(digest))

    def _key(self, digest: Digest) -> _Key:
        return (self._origin or "private" if self._private else "", digest)

    async def put(self, manifest: Manifest) -> None:
        if not self._space.has_room(len(manifest.body)):
            raise NoRoomError("no room for a manifest")
        self._space.manifests[self._key(manifest.digest)] = manifest

    def touch(self, digest: Digest) -> None:
        self.touched.append(digest)


class MemoryTags:
    """See :class:`mirror.store.interface.TagStore`."""

    def __init__(self) -> None:
        self.links: dict[str, Link] = {}

    async def lookup(self, name: str) -> Link | None:
        return self.links.get(name)

    async def put(self, name: str, link: Link) -> None:
        self.links[name] = link

    async def forget(self, name: str) -> None:
        self.links.pop(name, None)


class MemoryListings:
    """See :class:`mirror.store.interface.ListingStore`."""

    def __init__(self) -> None:
        self.pages: dict[str, Page] = {}

    async def lookup(self, name: str) -> Page | None:
        return self.pages.get(name)

    async def put(self, name: str, page: Page) -> None:
        await self.forget(name)
        if len(page.body or b"") <= MOST_PAGE_BYTES:
            self.pages[name] = page

    async def forget(self, name: str) -> None:
        self.pages.pop(name, None)


class MemoryLinks:
    """See :class:`mirror.store.interface.RepositoryLinks`."""

    def __init__(self) -> None:
        self.names: set[str] = set()

    async def has(self, name: str) -> bool:
        return name in self.names

    async def put(self, name: str) -> None:
        self.names.add(name)


class MemoryStore:
    """All parts of a store with room for ``room`` bytes."""

    def __init__(self, room: int = 1 << 30) -> None:
        space = _Space(room)
        self.blobs, self.manifests = MemoryBlobs(space), MemoryManifests(space)
        self.private_blobs = MemoryBlobs(space, private=True)
        self.private_manifests = MemoryManifests(space, private=True)
        self.tags, self.listings, self.links = MemoryTags(), MemoryListings(), MemoryLinks()
        self.close = partial(_Space.close, space)
