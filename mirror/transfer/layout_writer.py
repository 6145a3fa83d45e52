"""Writes OCI image layouts: a tar, or a directory.

Incomplete files never have their final names.  Knows files; must not know the source of the bytes.
"""

import asyncio
import contextlib
import os
import secrets
import sys
from collections.abc import AsyncIterable, AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Final, Protocol

from mirror.oci.digest import Digest
from mirror.oci.image_layout import (
    ARCHIVE_FILE,
    INDEX_FILE,
    MARKER,
    MARKER_FILE,
    NotALayout,
    blob_file,
    merged_index,
    written_index,
)
from mirror.oci.manifest import Descriptor
from mirror.transfer.tar import BLOCK, header, padding
from mirror.user_error import UserError

Roots = Sequence[tuple[Descriptor, str]]
_READ_BYTES: Final = 1024 * 1024


class LayoutWriter(Protocol):
    """Receives a layout: first its index, then each blob, then the end."""

    async def begin(self, roots: Roots, archive: bytes) -> None:
        """Set the manifests and their names; ``archive`` is for ``docker load``."""

    async def add(self, digest: Digest, size: int, pieces: AsyncIterable[bytes]) -> None:
        """Add one blob or manifest of ``size`` bytes; the caller verifies the bytes."""

    async def finish(self) -> None:
        """Complete the layout."""


@contextlib.contextmanager
def opened_layout(target: str) -> Iterator[LayoutWriter]:
    """Write to a file, to an existing directory (or a path that ends with a slash), or to ``-``.

    Raises:
        UserError: the target cannot be written.
    """
    path = Path(target)
    try:
        if target == "-":
            yield TarLayout(sys.stdout.buffer)
        elif path.is_dir() or target.endswith("/"):
            yield DirectoryLayout(path)
        elif path.exists() and not path.is_file():  # a pipe, a device
            with path.open("wb") as file:
                yield TarLayout(file)
        else:
            with _replaced(path) as file:
                yield TarLayout(file)
    except OSError as error:
        raise UserError(f"{target}: cannot be written: {error.strerror}") from error


@contextlib.contextmanager
def _replaced(path: Path) -> Iterator[BinaryIO]:
    """A new file that gets its name when it is complete, and is removed on an error."""
    growing = path.with_name(f"{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with growing.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        growing.replace(path)
    except BaseException:
        growing.unlink(missing_ok=True)
        raise


class TarLayout:
    """A layout as a tar, in one pass; the same images give the same bytes."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    async def begin(self, roots: Roots, archive: bytes) -> None:
        """Write marker and index first, so that the reader of a pipe knows what follows."""
        index = written_index(roots)
        for name, data in (MARKER_FILE, MARKER), (INDEX_FILE, index), (ARCHIVE_FILE, archive):
            await self._write(header(name, len(data)) + data + bytes(padding(len(data))))

    async def add(self, digest: Digest, size: int, pieces: AsyncIterable[bytes]) -> None:
        await self._write(header(blob_file(digest), size))
        async for piece in pieces:
            await self._write(piece)
        await self._write(bytes(padding(size)))

    async def finish(self) -> None:
        await self._write(bytes(2 * BLOCK))
        await asyncio.to_thread(self._file.flush)

    async def _write(self, data: bytes) -> None:
        await asyncio.to_thread(self._file.write, data)


class DirectoryLayout:
    """A layout as a directory; images are added, and replace those of the same name."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._roots: Roots = ()

    async def begin(self, roots: Roots, archive: bytes) -> None:  # noqa: ARG002  # for tars
        """Keep the old index until ``finish``: until then the directory is the old layout."""
        self._roots = roots
        self._root.mkdir(parents=True, exist_ok=True)
        marker = self._root / MARKER_FILE
        if not marker.exists():
            if any(self._root.iterdir()):
                raise UserError(
                    f"{self._root}: the directory is not empty, and not an OCI image layout"
                )
            marker.write_bytes(MARKER)

    async def add(self, digest: Digest, size: int, pieces: AsyncIterable[bytes]) -> None:
        """Write a file, which gets its name when it is complete; skip one that is there already."""
        path = self._root / blob_file(digest)
        if await asyncio.to_thread(_is_there, path, digest, size):
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with _replaced(path) as file:
            async for piece in pieces:
                await asyncio.to_thread(file.write, piece)

    async def finish(self) -> None:
        """Write the index, merged with the former one."""
        path = self._root / INDEX_FILE
        try:
            index = merged_index(path.read_bytes(), self._roots)
        except FileNotFoundError:
            index = written_index(self._roots)
        except NotALayout as error:
            raise UserError(f"{self._root}: {error}") from error
        with _replaced(path) as file:
            file.write(index)


def _is_there(path: Path, digest: Digest, size: int) -> bool:
    hasher = digest.hasher()
    try:
        if path.stat().st_size != size:
            return False
        with path.open("rb") as file:
            while piece := file.read(_READ_BYTES):
                hasher.update(piece)
    except OSError:
        return False
    return digest.matches(hasher)


async def verified(pieces: AsyncIterable[bytes], descriptor: Descriptor) -> AsyncIterator[bytes]:
    """Pass the bytes on, and compare them with ``descriptor`` at the end.

    Raises:
        UserError: size or digest differ.
    """
    hasher, size = descriptor.digest.hasher(), 0
    async for piece in pieces:
        hasher.update(piece)
        size += len(piece)
        yield piece
    if size != descriptor.size or not descriptor.digest.matches(hasher):
        raise UserError(f"the content received for {descriptor.digest} does not match it")
