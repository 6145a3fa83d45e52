"""Stores the files of a layout; each is verified first.

Only the index tells manifests from blobs, and it may come last.  So a file that parses as a
manifest is stored as one; ``completeness`` stores it as a blob as well, if it is used as one.
"""

import asyncio
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
from mirror.oci.manifest import NotAManifest, identify
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
    """Yield ``body`` in one piece."""
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
