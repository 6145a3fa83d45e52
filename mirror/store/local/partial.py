"""A fill on disk: a contiguous prefix of a blob that grows until it is whole.

Knows files and hashes; knows neither the index nor where bytes come from.  Whoever holds the
lock on the file is its leader, in this process or another.  Everything here blocks: call it
from a worker thread.
"""

import errno
import fcntl
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mirror.descriptor import Descriptor
from mirror.oci.digest import Digest, Hasher

_READ_BYTES: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class PartialStatus:
    """A partial file at one moment: ``length`` of ``total`` bytes; somebody fills it, or not."""

    length: int
    total: int | None
    led: bool


class PartialBusyError(Exception):
    """Another leader, most likely another process, is filling this blob."""


class Partial:
    """The growing file of one blob, held under its lock."""

    def __init__(self, path: Path, digest: Digest) -> None:
        """Create the file or take up what an earlier fill left, re-hashing it.

        Raises:
            PartialBusyError: another leader holds it.
            OSError: the disk says no.
        """
        self.path = path
        self.digest = digest
        # Said aloud: the lock would otherwise live as long as the slowest reader's descriptor.
        self._fd = Descriptor(_open_locked(path), _unlock_and_close)
        self.length = 0
        self.hasher: Hasher = digest.hasher()
        try:
            self._rehash()
        except OSError:
            self._fd.close()
            raise

    def _rehash(self) -> None:
        with self._fd as number:
            while piece := os.pread(number, _READ_BYTES, self.length):
                self.hasher.update(piece)
                self.length += len(piece)

    @staticmethod
    def remove_idle(path: Path) -> bool:
        """Remove a partial file unless somebody leads it; say whether it is gone."""
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
        """Whether somebody fills a partial file, in this process or another."""
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            return is_locked(fd)
        finally:
            os.close(fd)

    def restart(self) -> None:
        """Throw the bytes away and begin again; only while nobody reads them.

        Raises:
            OSError: the disk says no.
        """
        with self._fd as number:
            os.ftruncate(number, 0)
        self.length = 0
        self.hasher = self.digest.hasher()

    def append(self, pieces: Sequence[bytes]) -> None:
        """Write and hash more of the blob.

        Raises:
            OSError: the disk says no; the file then ends after the last hashed byte.
        """
        data = b"".join(pieces) if len(pieces) > 1 else pieces[0]
        view = memoryview(data)
        written = 0
        with self._fd as number:
            try:
                while written < len(view):
                    # pwrite, not write: readers share this file and sendfile moves its position.
                    written += os.pwrite(number, view[written:], self.length + written)
            finally:
                self.hasher.update(view[:written])
                self.length += written

    def verified(self) -> bool:
        """Whether the bytes so far hash to the digest."""
        return self.digest.matches(self.hasher)

    def flush(self) -> None:
        """Bring the bytes to the disk, so that a power loss after adoption finds them."""
        with self._fd as number:
            os.fsync(number)

    @property
    def fd(self) -> Descriptor:
        """The descriptor that holds the lock; not for readers."""
        return self._fd

    def reader(self) -> Descriptor:
        """A file descriptor on the growing file, the caller's to close."""
        return self._fd.duplicate()

    def discard(self) -> None:
        """Remove the file; open readers keep their bytes."""
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Let go of the lock; the bytes stay for the next leader."""
        self._fd.close()


class PartialReader:
    """A partial file as those see it who do not lead it: read-only, for as long as it is open."""

    def __init__(self, path: Path, expected: Callable[[], int | None]) -> None:
        """``expected`` tells the size of the blob once the leader knows it.

        Raises:
            OSError: there is no such file, or the disk says no.
        """
        self._expected = expected
        self._fd = Descriptor(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
        self.total: int | None = None

    def look(self) -> PartialStatus:
        """How far it has come; three system calls on an open file, microseconds.

        Raises:
            OSError: the disk says no.
        """
        with self._fd as number:
            led = is_locked(number)  # first: what its last leader wrote is then seen below
            length = os.fstat(number).st_size
        if self.total is None:
            self.total = self._expected()
        return PartialStatus(length, self.total, led)

    def is_file_of(self, fd: Descriptor) -> bool:
        """Whether ``fd`` is open on this very file, wherever it lies by now."""
        with self._fd as own, fd as other:
            return os.path.samestat(os.fstat(own), os.fstat(other))

    def hashed(self, digest: Digest, length: int) -> Hasher:
        """What the first ``length`` bytes hash to.

        Raises:
            OSError: the disk says no, or there are fewer.
        """
        hasher = digest.hasher()
        position = 0
        with self._fd as number:
            while position < length:
                piece = os.pread(number, min(_READ_BYTES, length - position), position)
                if not piece:
                    raise OSError(errno.EIO, "the file became shorter")
                hasher.update(piece)
                position += len(piece)
        return hasher

    def reader(self) -> Descriptor:
        """A file descriptor on the growing file, the caller's to close."""
        return self._fd.duplicate()

    def close(self) -> None:
        """Look no more."""
        self._fd.close()


def is_locked(fd: int) -> bool:
    """Whether another descriptor holds the lock that a leader has."""
    try:
        # Shared, so that those who look do not take each other for a leader; only for a moment,
        # in which somebody who wants to lead is told to look again.
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
        # The former leader moved the file away between open and lock: look again.
        os.close(fd)


def _is_at(fd: int, path: Path) -> bool:
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    here = os.fstat(fd)
    return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)
