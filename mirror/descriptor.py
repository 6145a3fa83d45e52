"""File descriptors that several threads use, and parts of the open files.

A descriptor has one owner, and is closed when its last use has ended.

After a close, the system may reuse the number for another file.  Work that waits for a thread
therefore refers to a ``Descriptor``, which gives the number only while the file is open.
"""

import errno
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

_PIECE_BYTES: Final = 1024 * 1024


class Descriptor:
    """An open file descriptor; a ``with`` statement yields its number and keeps the file open."""

    __slots__ = ("_close", "_closed", "_lock", "_number", "_uses")

    def __init__(self, number: int, close: Callable[[int], None] = os.close) -> None:
        """Take ownership of ``number``, which ``close`` closes."""
        self._number = number
        self._close = close
        self._lock = threading.Lock()
        self._uses = 0
        self._closed = False

    def __enter__(self) -> int:
        """Return the number.

        Raises:
            OSError: the descriptor was closed before.
        """
        with self._lock:
            if self._closed:
                raise OSError(errno.EBADF, "the file was closed before its turn came")
            self._uses += 1
        return self._number

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._uses -= 1
            last = self._closed and not self._uses
        if last:
            self._close(self._number)

    def fileno(self) -> int:
        """The number; only the owner may call this, since only the owner knows that it is open."""
        return self._number

    def duplicate(self) -> "Descriptor":
        """Return another descriptor of the same open file.

        Raises:
            OSError: this one was closed before, or too many files are open.
        """
        with self as number:
            return Descriptor(os.dup(number))

    def close(self) -> None:
        """Close the descriptor once its last use has ended; further calls do nothing."""
        with self._lock:
            last = not self._closed and not self._uses
            self._closed = True
        if last:
            self._close(self._number)


@dataclass(frozen=True, slots=True)
class FileRange:
    """``length`` bytes of an open file from byte ``offset``.

    Ranges of one open file share its descriptor; the owner of the descriptor calls :meth:`close`.
    """

    descriptor: Descriptor
    offset: int
    length: int

    def part(self, start: int, stop: int) -> "FileRange":
        """Return the bytes of the same open file from ``start`` to ``stop``."""
        return FileRange(self.descriptor, start, stop - start)

    def read(self) -> bytes:
        """Return the bytes; fewer at the end of the file.

        Raises:
            OSError: the file cannot be read, or the descriptor was closed before.
        """
        with self.descriptor as number:
            return os.pread(number, self.length, self.offset)

    def pieces(self) -> Iterator[bytes]:
        """Yield the bytes, at most 1 MiB at a time; fewer at the end of the file.

        Raises:
            OSError: as for :meth:`read`.
        """
        position, stop = self.offset, self.offset + self.length
        with self.descriptor as number:
            while piece := os.pread(number, min(_PIECE_BYTES, stop - position), position):
                yield piece
                position += len(piece)

    def duplicate(self) -> "FileRange":
        """Return the same range with another descriptor, which the caller closes.

        Raises:
            OSError: the descriptor was closed before, or too many files are open.
        """
        return FileRange(self.descriptor.duplicate(), self.offset, self.length)

    def is_same_file(self, other: "FileRange") -> bool:
        """Return True if both are parts of one file, even if the file was renamed."""
        with self.descriptor as own, other.descriptor as theirs:
            return os.path.samestat(os.fstat(own), os.fstat(theirs))

    def close(self) -> None:
        """Close the descriptor, for all ranges that share it."""
        self.descriptor.close()
