"""Reads OCI image layouts: a tar in one pass, compressed or not, or a directory.

Yields one file of the layout after another, and skips other files.  A tar is never unpacked: no
name in it becomes a path.  All calls block: use a worker thread.
"""

import bz2
import contextlib
import gzip
import lzma
import os
import stat
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO, Final, cast

from mirror.oci.digest import Digest
from mirror.oci.image_layout import INDEX_FILE, MARKER_FILE, NotALayout, UnsafeName, parse_file
from mirror.transfer.tar import DamagedTar, Member, padding, read_member
from mirror.user_error import UserError

_SKIP_BYTES: Final = 1024 * 1024
_MAGIC_BYTES: Final = 6
_ZSTD: Final = b"\x28\xb5\x2f\xfd"
_PACKED: Final[Mapping[bytes, Callable[[IO[bytes]], IO[bytes]]]] = {
    b"\x1f\x8b": lambda file: cast("IO[bytes]", gzip.GzipFile(fileobj=file)),
    b"BZh": lambda file: cast("IO[bytes]", bz2.BZ2File(file)),
    b"\xfd7zXZ": lambda file: cast("IO[bytes]", lzma.LZMAFile(file)),  # noqa: SIM115  # owns nothing
}
_DAMAGED: Final = (EOFError, OSError, zlib.error, lzma.LZMAError)
_NONE: Final = (
    "not an OCI image layout; docker save writes one from Docker 25 on, skopeo as oci-archive:"
)
_SHOWN: Final = 80


@dataclass(frozen=True, slots=True)
class LayoutFile:
    """A file of a layout; ``what`` is a digest, or the name of the marker or the index.

    ``size`` in bytes; ``read`` returns as many bytes as asked for, fewer only at the end.
    """

    what: Digest | str
    size: int
    read: Callable[[int], bytes]


Files = Iterator[LayoutFile]


@contextlib.contextmanager
def opened_files(source: str, took: Callable[[int], None]) -> Iterator[tuple[Files, int | None]]:
    """Read a tar, a directory, or ``-`` for a tar from standard input.

    ``took`` is called with the number of bytes read, after every read.  Yields the files, and the
    number of bytes to read, None if it is unknown.

    Raises:
        UserError: ``source`` cannot be read.
    """
    path = Path(source)
    try:
        if source == "-":
            yield _in_tar(_unpacked(sys.stdin.buffer, took)), None
        elif path.is_dir():
            names = _names(path)
            total = sum((path / name).lstat().st_size for name in names)
            yield _in_directory(path, names, took), total
        else:
            with path.open("rb") as raw:
                there = os.fstat(raw.fileno())
                total_bytes = there.st_size if stat.S_ISREG(there.st_mode) else None
                yield _in_tar(_unpacked(raw, took)), total_bytes
    except OSError as error:
        raise UserError(f"{source}: cannot be read: {error.strerror or error}") from error


def _unpacked(raw: BinaryIO, took: Callable[[int], None]) -> Callable[[int], bytes]:
    """Decompress by the first bytes of the file, not by its name."""
    magic = raw.read(_MAGIC_BYTES)  # not peek(), which returns only what a pipe has already
    if magic.startswith(_ZSTD):
        raise NotALayout("compressed with zstd; unpack it first: zstd -dc FILE | mirror import -")
    counted = cast("IO[bytes]", _Counted(raw, took, magic))
    for beginning, unpack in _PACKED.items():
        if magic.startswith(beginning):
            return _undamaged(unpack(counted).read)
    return counted.read


class _Counted:
    """A file that reports the number of bytes read."""

    def __init__(self, raw: BinaryIO, took: Callable[[int], None], beginning: bytes = b"") -> None:
        """``beginning`` was read from ``raw`` already; ``read`` returns it first."""
        self._raw = raw
        self._took = took
        self._beginning = beginning

    def read(self, size: int = -1) -> bytes:
        data = self._beginning if size < 0 else self._beginning[:size]
        self._beginning = self._beginning[len(data) :]
        data += self._raw.read(size if size < 0 else size - len(data))
        self._took(len(data))
        return data


def _undamaged(read: Callable[[int], bytes]) -> Callable[[int], bytes]:
    def reading(size: int) -> bytes:
        try:
            return read(size)
        except _DAMAGED as error:
            raise DamagedTar(f"the compressed data is damaged: {error}") from error

    return reading


def _in_tar(read: Callable[[int], bytes]) -> Files:
    """The files of a tar; the unread rest of a file is skipped.

    Raises:
        DamagedTar, NotALayout: it is damaged, not a tar, or not a layout.
    """
    seen = False
    for member in _members(read):
        what = parse_file(member.name)
        left = _Left(read, member.size, member.name)
        if what is not None and not member.is_file:
            raise UnsafeName(f"{member.name!r} is not a regular file")
        if what is not None:
            seen = True
            yield LayoutFile(what, member.size, left.read)
        left.skip()
    if not seen:
        raise NotALayout(_NONE)


def _members(read: Callable[[int], bytes]) -> Iterator[Member]:
    try:
        member = read_member(read)
    except DamagedTar as error:
        raise NotALayout(f"not a tar: {error}") from error
    while member is not None:
        yield member
        member = read_member(read)


class _Left:
    """The unread rest of one file in a tar."""

    def __init__(self, read: Callable[[int], bytes], size: int, name: str) -> None:
        self._read = read
        self._left = size
        self._padding = padding(size)
        self._name = name

    def read(self, size: int) -> bytes:
        """Return the next bytes, fewer at the end of the file."""
        wanted = min(size, self._left)
        data = self._read(wanted)
        if len(data) < wanted:
            raise DamagedTar(f"truncated in the middle of {self._name[:_SHOWN]}")
        self._left -= wanted
        return data

    def skip(self) -> None:
        while self._left:
            self.read(_SKIP_BYTES)
        if len(self._read(self._padding)) < self._padding:
            raise DamagedTar("truncated before its end")


def _names(root: Path) -> list[str]:
    """The files of a layout in a directory, relative to it.

    Raises:
        NotALayout: the directory has neither marker nor index.
    """
    names = [name for name in (MARKER_FILE, INDEX_FILE) if (root / name).exists()]
    if not names:
        raise NotALayout(_NONE)
    blobs = sorted(root.glob("blobs/*/*"))
    return names + [path.relative_to(root).as_posix() for path in blobs]


def _in_directory(root: Path, names: Iterable[str], took: Callable[[int], None]) -> Files:
    for name in names:
        what = parse_file(name)
        if what is None:
            continue
        # O_NOFOLLOW, too: a link may lead to files outside the layout.
        fd = os.open(root / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(fd, "rb") as file:
            there = os.fstat(fd)
            if not stat.S_ISREG(there.st_mode):
                raise UnsafeName(f"{name!r} is not a regular file")
            yield LayoutFile(what, there.st_size, _Counted(file, took).read)
