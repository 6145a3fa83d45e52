"""OCI image layouts as they are written: a tar, or a directory.

What is half done is never seen under its name.  Knows files; must not know where bytes come from.
"""

import asyncio
import contextlib
import os
import secrets
import sys
from collections.abc import AsyncIterable, AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Final, Protocol

from mirror.admin.errors import OperateError
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

Roots = Sequence[tuple[Descriptor, str]]
_READ_BYTES: Final = 1024 * 1024


class LayoutWriter(Protocol):
    """Takes a layout: first what it holds, then each blob, then the end."""

    async def begin(self, roots: Roots, archive: bytes) -> None:
        """These manifests are in it, under these names; ``archive`` is for ``docker load``."""

    async def add(self, digest: Digest, size: int, pieces: AsyncIterable[bytes]) -> None:
        """One blob or manifest of ``size`` bytes, which the caller verifies as they pass."""

    async def finish(self) -> None:
        """It is whole."""


@contextlib.contextmanager
def opened_layout(target: str) -> Iterator[LayoutWriter]:
    """Write to a file, to an existing directory (or what ends with a slash), or to ``-``.

    Raises:
        OperateError: nothing can be written there.
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
        raise OperateError(f"{target}: cannot be written: {error.strerror}") from error


@contextlib.contextmanager
def _replaced(path: Path) -> Iterator[BinaryIO]:
    """A new file that takes its name when it is whole, and leaves nothing when it is not."""
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
    """A layout as a tar, in one go; the same images make the same bytes."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    async def begin(self, roots: Roots, archive: bytes) -> None:
        """The marker and the index first: who reads a pipe knows then what to expect."""
        index = written_index(roots)
        for name, data in (MARKER_FILE, MARKER), (INDEX_FILE, index), (ARCHIVE_FILE, archive):
            await self._write(header(name, len(data)) + data + bytes(padding(len(data))))

    async def add(self, digest: Digest, size: int, pieces: AsyncIterable[bytes]) -> None:
        """Header, bytes, padding."""
        await self._write(header(blob_file(digest), size))
        async for piece in pieces:
            await self._write(piece)
        await self._write(bytes(padding(size)))

    async def finish(self) -> None:
        """Two empty blocks."""
        await self._write(bytes(2 * BLOCK))
        await asyncio.to_thread(self._file.flush)

    async def _write(self, data: bytes) -> None:
        await asyncio.to_thread(self._file.write, data)


class DirectoryLayout:
    """A layout as a directory, to which images are added; those of the same name are replaced."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._roots: Roots = ()

    async def begin(self, roots: Roots, archive: bytes) -> None:  # noqa: ARG002  # loads tars
        """The index comes last: until then the directory is the layout that it was."""
        self._roots = roots
        self._root.mkdir(parents=True, exist_ok=True)
        marker = self._root / MARKER_FILE
        if not marker.exists():
            if any(self._root.iterdir()):
                raise OperateError(f"{self._root}: is a directory with other things in it")
            marker.write_bytes(MARKER)

    async def add(self, digest: Digest, size: int, pieces: AsyncIterable[bytes]) -> None:
        """A file that takes its name when it is whole; one that is there is left alone."""
        path = self._root / blob_file(digest)
        if await asyncio.to_thread(_is_there, path, digest, size):
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        with _replaced(path) as file:
            async for piece in pieces:
                await asyncio.to_thread(file.write, piece)

    async def finish(self) -> None:
        """The index, with what it had before."""
        path = self._root / INDEX_FILE
        try:
            index = merged_index(path.read_bytes(), self._roots)
        except FileNotFoundError:
            index = written_index(self._roots)
        except NotALayout as error:
            raise OperateError(f"{self._root}: {error}") from error
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
    """The same bytes, as long as they are what they should be.

    Raises:
        OperateError: they are not.
    """
    hasher, size = descriptor.digest.hasher(), 0
    async for piece in pieces:
        hasher.update(piece)
        size += len(piece)
        yield piece
    if size != descriptor.size or not descriptor.digest.matches(hasher):
        raise OperateError(f"{descriptor.digest}: other bytes came than it names")
