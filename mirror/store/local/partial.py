"""The partial file of a fill: a contiguous prefix of a blob that grows until it is complete.

The fill that holds the lock on the file is its leader, in this process or another.  This module
is independent of the index and of upstreams.  All other functions block: call them from a worker
thread.
"""

import errno
import fcntl
import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from mirror.descriptor import Descriptor, FileRange
from mirror.oci.digest import Digest, Hasher
from mirror.store.interface import Chunk, PartialBusyError, PartialStatus

_Run = Callable[[Callable[[], Hasher]], Awaitable[Hasher]]


class Partial:
    """The partial file of one blob, locked by its leader."""

    def __init__(self, path: Path, digest: Digest) -> None:
        """Create the file, or resume and hash the file that an earlier fill left.

        Raises:
            PartialBusyError: another leader holds the lock.
            OSError: the file cannot be opened or read.
        """
        self.path = path
        self.digest = digest
        # Unlock explicitly: readers' duplicates of the descriptor would hold the lock otherwise.
        self._fd = Descriptor(_open_locked(path), _unlock_and_close)
        self.length = 0
        self.hasher: Hasher = digest.hasher()
        try:
            for piece in FileRange(self._fd, 0, sys.maxsize).pieces():
                self.hasher.update(piece)
                self.length += len(piece)
        except OSError:
            self._fd.close()
            raise

    @staticmethod
    def remove_idle(path: Path) -> bool:
        """Remove a partial file that has no leader; return True if the file is gone."""
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return True
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)
        except BlockingIOError:
            return False
        finally:
            os.close(fd)
        return True

    @staticmethod
    def is_led(path: Path) -> bool:
        """Return True if a partial file has a leader, in this process or another."""
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            return is_locked(fd)
        finally:
            os.close(fd)

    def truncate(self) -> None:
        """Truncate the file to start again.  The file must not have readers.

        Raises:
            OSError: the file cannot be truncated.
        """
        with self._fd as number:
            os.ftruncate(number, 0)
        self.length = 0
        self.hasher = self.digest.hasher()

    def write(self, pieces: Sequence[Chunk]) -> None:
        """Write and hash the next bytes of the blob.

        Raises:
            OSError: the write failed; the file then ends after the last hashed byte.
        """
        data = b"".join(pieces) if len(pieces) > 1 else pieces[0]
        view = memoryview(data)
        written = 0
        with self._fd as number:
            try:
                while written < len(view):
                    # pwrite, not write: readers share the file position, and sendfile moves it.
                    written += os.pwrite(number, view[written:], self.length + written)
            finally:
                self.hasher.update(view[:written])
                self.length += written

    def verified(self) -> bool:
        return self.digest.matches(self.hasher)

    def flush(self) -> None:
        """Flush the bytes to the disk, so that an adopted file survives a power loss."""
        with self._fd as number:
            os.fsync(number)

    @property
    def content(self) -> FileRange:
        """The bytes so far; readers duplicate the range, since this descriptor holds the lock."""
        return FileRange(self._fd, 0, self.length)

    def discard(self) -> None:
        """Remove the file; open descriptors stay readable."""
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Release the lock; the bytes stay for the next leader."""
        self._fd.close()


class PartialReader:
    """Read-only access to a partial file, for followers of its leader."""

    def __init__(self, path: Path, size_of: Callable[[], int | None], run: _Run) -> None:
        """``size_of`` returns the size of the blob once the leader knows it.

        ``run`` runs the work that hashes.

        Raises:
            OSError: the file does not exist or cannot be opened.
        """
        self._size_of = size_of
        self._run = run
        self._fd = Descriptor(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
        self._total: int | None = None
        self._length = 0

    def look(self) -> PartialStatus:
        """Return the current state.  This takes three system calls, a few microseconds.

        Raises:
            OSError: the file cannot be queried.
        """
        with self._fd as number:
            led = is_locked(number)  # before fstat, which then sees the last write
            self._length = os.fstat(number).st_size
        if self._total is None:
            self._total = self._size_of()
        return PartialStatus(self._length, self._total, led)

    async def hashed(self, digest: Digest, length: int) -> Hasher:
        """Hash the first ``length`` bytes.

        Raises:
            OSError: the file cannot be read, or is shorter.
        """
        return await self._run(lambda: self._hashed(digest, length))

    def _hashed(self, digest: Digest, length: int) -> Hasher:
        hasher, left = digest.hasher(), length
        for piece in FileRange(self._fd, 0, length).pieces():
            hasher.update(piece)
            left -= len(piece)
        if left:
            raise OSError(errno.EIO, "the file became shorter")
        return hasher

    @property
    def content(self) -> FileRange:
        """The bytes at the last :meth:`look`; readers duplicate the range."""
        return FileRange(self._fd, 0, self._length)

    def close(self) -> None:
        self._fd.close()


def is_locked(fd: int) -> bool:
    """Return True if another descriptor holds a leader's lock."""
    try:
        # A shared lock, so that two followers do not mistake each other for a leader.  While it
        # is held, a fill that wants to lead gets PartialBusyError and must try again.
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(fd, fcntl.LOCK_UN)
    return False


def _unlock_and_close(fd: int) -> None:
    fcntl.flock(fd, fcntl.LOCK_UN)
    os.close(fd)


def _open_locked(path: Path) -> int:
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(fd, path):
                return fd
        except BlockingIOError as error:
            os.close(fd)
            raise PartialBusyError(f"{path.name} is being filled elsewhere") from error
        except OSError:
            os.close(fd)
            raise
        # The former leader moved the file between open and lock: try again.
        os.close(fd)


def _is_at(fd: int, path: Path) -> bool:
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    here = os.fstat(fd)
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)
