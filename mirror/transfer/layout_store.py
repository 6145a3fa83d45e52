"""Stores the files of a layout, each verified first, and checks that its images are complete.

Only the index tells manifests from blobs, and it may come last.  So a file that parses as a
manifest is stored as one; :class:`Completeness` stores it as a blob as well, if it is used as one.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Final

from mirror.oci.digest import Digest
from mirror.oci.image_layout import (
    INDEX_FILE,
    MARKER_FILE,
    NamedRoot,
    NotALayout,
    check_marker,
    parse_index,
)
from mirror.oci.manifest import Descriptor, NotAManifest, identify, index_entries
from mirror.oci.media_types import MANIFEST_TYPES
from mirror.registry_client.pull import MAX_DEPTH, MAX_REFERENCES, blobs_of, is_index
from mirror.store.interface import BlobStore, Manifest, ManifestStore, NoRoomError, PartialBusyError
from mirror.transfer.layout_reader import LayoutFile

MAX_MANIFEST_BYTES: Final = 4 * 1024 * 1024  # the same limit as for upstreams
_PIECE_BYTES: Final = 1024 * 1024
_OTHER: Final = "the content of {} does not match its digest"


class DamagedLayout(NotALayout):  # names the state
    """The content of a file in a layout does not match its digest."""


class Taking:
    """Stores the files of one layout."""

    def __init__(self, blobs: BlobStore, manifests: ManifestStore) -> None:
        self._blobs = blobs
        self._manifests = manifests
        self._roots: Sequence[NamedRoot] | None = None

    def roots(self) -> Sequence[NamedRoot]:
        """The images in the index of the layout; call it after all files were taken.

        Raises:
            NotALayout: the layout lacks an index, or has an empty one.
        """
        if self._roots is None:
            raise NotALayout(f"has no {INDEX_FILE}")
        if not self._roots:
            raise NotALayout("contains no image")
        return self._roots

    async def take(self, file: LayoutFile) -> None:
        """Store the next file.

        Raises:
            NotALayout, DamagedTar: the file is damaged.
            OSError, NoRoomError, IndexUnavailableError: the file cannot be stored.
        """
        if isinstance(file.what, Digest):
            await self._object(file.what, file)
        elif file.what == MARKER_FILE:
            check_marker(await _small(file))
        else:
            self._roots = parse_index(await _small(file))

    async def _object(self, digest: Digest, file: LayoutFile) -> None:
        if file.size > MAX_MANIFEST_BYTES:
            await store_blob(self._blobs, digest, file.size, _pieces(file))
            return
        body = await _small(file)
        if Digest.of(body, digest.algorithm) != digest:
            raise DamagedLayout(_OTHER.format(digest))
        try:
            media_type = identify(body, "") if body[:1] == b"{" else ""
        except NotAManifest:
            media_type = ""
        if media_type:
            await self._manifests.put(Manifest(digest, media_type, body))
        else:
            await store_blob(self._blobs, digest, len(body), whole(body))


async def store_blob(
    blobs: BlobStore, digest: Digest, size: int, pieces: AsyncIterator[bytes]
) -> None:
    """Verify a blob and store it; only verify it if it is stored, or being downloaded, already.

    Raises:
        DamagedLayout: its content does not match its digest.
        OSError, NoRoomError, IndexUnavailableError: it cannot be stored.
    """
    stored = await blobs.lookup(digest)
    if stored is not None:
        stored.close()
        await _verify(digest, pieces)
        return
    try:
        partial = await blobs.stage(digest)
    except PartialBusyError:  # a mirror is downloading it
        await _verify(digest, pieces)
        return
    adopted = False
    try:
        await partial.restart()
        if not await partial.reserve(size, size):
            raise NoRoomError(f"no room for {digest}: check max_size, min_free and the disk")
        async for piece in pieces:
            await partial.append([piece])
        if not partial.verified():
            raise DamagedLayout(_OTHER.format(digest))
        await partial.adopt()
        adopted = True
    finally:
        await asyncio.shield(partial.release(discard=not adopted))


async def whole(body: bytes) -> AsyncIterator[bytes]:
    yield body


async def _verify(digest: Digest, pieces: AsyncIterator[bytes]) -> None:
    hasher = digest.hasher()
    async for piece in pieces:
        hasher.update(piece)
    if not digest.matches(hasher):
        raise DamagedLayout(_OTHER.format(digest))


async def _pieces(file: LayoutFile) -> AsyncIterator[bytes]:
    left = file.size
    while left:
        piece = await asyncio.to_thread(file.read, min(left, _PIECE_BYTES))
        if not piece:
            raise DamagedLayout(f"{file.what} was truncated meanwhile")
        left -= len(piece)
        yield piece


async def _small(file: LayoutFile) -> bytes:
    if file.size > MAX_MANIFEST_BYTES:
        raise NotALayout(f"its {file.what} is too large")
    return b"".join([piece async for piece in _pieces(file)])


class LackingError(Exception):
    """A part of an image is missing from the store."""


class TooManyReferences(NotALayout):  # names the state
    """The manifests of an image have more references than the limit."""


#: A digest, the media type in its reference, and the levels of indexes that may follow.
_CheckedAs = tuple[Digest, str, int]


class Completeness:
    """Checks images; each manifest of a layout once, however many others refer to it."""

    def __init__(self, blobs: BlobStore, manifests: ManifestStore) -> None:
        self._blobs = blobs
        self._manifests = manifests
        self._checked: dict[_CheckedAs, tuple[Descriptor, int] | str] = {}
        self._there: set[Digest] = set()
        self._references = 0

    async def completed(self, root: Descriptor) -> tuple[Descriptor, int]:
        """Check an image; store a blob that was read as a manifest as a blob, too.

        For an index, one complete image is enough: layouts are often made for one platform.

        Returns:
            the descriptor for its name, and the total size of its blobs in bytes.

        Raises:
            LackingError: the image is not complete.
            TooManyReferences: its manifests have more references than the limit.
            OSError, NoRoomError, IndexUnavailableError: the store cannot be used.
        """
        self._references = 0
        return await self._completed(root, MAX_DEPTH)

    async def manifests(self, root: Digest) -> list[Digest]:
        """Return the digest of an image, and those of the manifests in it if it is an index."""
        manifest = await self._manifests.lookup(root)
        with contextlib.suppress(NotAManifest):
            entries = () if manifest is None else index_entries(manifest.body)
            return [root, *(entry.descriptor.digest for entry in entries)]
        return [root]

    async def _completed(self, root: Descriptor, depth: int) -> tuple[Descriptor, int]:
        media_type = root.media_type if root.media_type in MANIFEST_TYPES else ""
        key = root.digest, media_type, depth
        found = self._checked.get(key)
        if found is None:
            try:
                found = await self._check(root.digest, media_type, depth)
            except LackingError as error:
                found = str(error)
            self._checked[key] = found
        if isinstance(found, str):
            raise LackingError(found)
        return found

    async def _check(self, digest: Digest, sent_as: str, depth: int) -> tuple[Descriptor, int]:
        manifest = await self._manifests.lookup(digest)
        if manifest is None:
            raise LackingError(f"lacks its manifest {digest}")
        body = manifest.body
        try:
            media_type = identify(body, sent_as)
            if not is_index(media_type):
                size = await self._blobs_there(body)
            elif depth:
                size = await self._images_there(body, depth - 1)
            else:
                raise LackingError("has indexes nested too deeply")
        except NotAManifest as error:
            raise LackingError(f"{digest}: {error}") from error
        return Descriptor(media_type, digest, len(body)), size

    async def _images_there(self, index: bytes, depth: int) -> int:
        entries = index_entries(index)
        self._count(len(entries))
        images = {entry.descriptor.digest: entry.descriptor for entry in entries}
        size, lacking = 0, LackingError("is an empty index")
        found = False
        for image in images.values():
            try:
                size += (await self._completed(image, depth))[1]
                found = True
            except LackingError as error:
                lacking = error
        if not found:
            raise lacking
        return size

    async def _blobs_there(self, image: bytes) -> int:
        needed = blobs_of(image)
        self._count(len(needed))
        for digest in needed:
            if not await self._is_there(digest):
                raise LackingError(f"lacks {digest}; if a mirror is downloading it, import again")
        return sum(blob.size for blob in needed.values())

    async def _is_there(self, digest: Digest) -> bool:
        if digest in self._there:
            return True
        stored = await self._blobs.lookup(digest)
        if stored is not None:
            stored.close()
        else:
            manifest = await self._manifests.lookup(digest)  # a blob that was read as a manifest
            if manifest is None:
                return False
            await store_blob(self._blobs, digest, len(manifest.body), whole(manifest.body))
        self._there.add(digest)
        return True

    def _count(self, references: int) -> None:
        self._references += references
        if self._references > MAX_REFERENCES:
            raise TooManyReferences(
                f"the manifests of an image have more than {MAX_REFERENCES} references"
            )
