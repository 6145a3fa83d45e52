"""Disk usage of files, in whole blocks and inodes, and the health of the disk.

All functions but ``lacks_inodes`` and ``taken_by`` raise OSError if the file system cannot be
queried.
"""

import errno
import logging
import math
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mirror.lru import Lru
from mirror.store.interface import IndexUnavailableError
from mirror.trouble import Problem, Trouble

_BLOCK_BYTES: Final = 4096  # the smallest allocation of common file systems
_SECTOR_BYTES: Final = 512  # the unit of st_blocks on every file system


@dataclass(frozen=True, slots=True)
class Free:
    """Free space for unprivileged users: bytes, and inodes (infinite if unlimited)."""

    bytes: int
    inodes: float


def free_on(path: Path) -> Free:
    """Return the free space of the file system of ``path``."""
    there = os.statvfs(path)
    return Free(there.f_bavail * there.f_frsize, there.f_favail if there.f_files else math.inf)


def total_inodes(path: Path) -> int:
    """Return the number of inodes of the file system of ``path``, 0 if unlimited."""
    return os.statvfs(path).f_files


def lacks_inodes(path: Path) -> bool:
    """Return True if the file system of ``path`` has no free inode; False if that is unknown."""
    try:
        return free_on(path).inodes < 1
    except OSError:
        return False


def block_bytes(path: Path) -> int:
    """Return the block size of the file system of ``path``, in bytes."""
    return max(_BLOCK_BYTES, os.statvfs(path).f_frsize)


def in_blocks(size: int, block: int) -> int:
    """Return the space of a file of ``size`` bytes in blocks of ``block`` bytes.

    The file system's figure (st_blocks) is not final before the file is flushed to the disk.
    """
    return -(-size // block) * block


def taken_by(paths: Iterable[Path]) -> int:
    """Return the bytes that files and directories take on the disk; missing ones take none."""
    return sum(map(_taken, paths))


def _taken(path: Path) -> int:
    try:
        return path.stat(follow_symlinks=False).st_blocks * _SECTOR_BYTES
    except OSError:
        return 0


_log = logging.getLogger(__name__)

_MOST_REASONS: Final = 16
_SQLITE_FULL: Final = "database or disk is full"
_NO_INODES: Final = "no inodes left"
_INODE_ADVICE: Final = (
    "remove other files from the file system (df -i), or raise min_free so that the mirror "
    "evicts sooner"
)
_ADVICE: Final = {
    errno.ENOSPC: "free some space, or lower max_size or raise min_free so that the mirror does",
    errno.EDQUOT: "raise the quota, or lower max_size below it",
    errno.EROFS: "the file system is read-only: mount it for writing",
    errno.EIO: "the disk fails: see the kernel's log, and replace it",
    errno.EACCES: "make the directory writable for the mirror's user",
    errno.EPERM: "make the directory writable for the mirror's user",
    errno.EMFILE: "allow the process more open files (LimitNOFILE, ulimit -n)",
    errno.ENOENT: "the directory was removed; the mirror makes it again",
}

#: Transient errors of a disk, as opposed to a wrong choice of directory.
TROUBLES: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO})


class DiskHealth:
    """The state of the cache directory; each change is logged once.

    The disk and the databases may have other words for one trouble, in turn.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.reason = ""
        self._troubles: Lru[str, Trouble] = Lru(_MOST_REASONS)

    def failing(self, error: Exception) -> None:
        number = error.errno if isinstance(error, OSError) else None
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        if isinstance(error, IndexUnavailableError) and reason.endswith(_SQLITE_FULL):
            number = errno.ENOSPC
        if number is None:  # the index passes on the system's words
            number = next((each for each in _ADVICE if reason.endswith(os.strerror(each))), None)
        advice = _ADVICE.get(number or 0, "see whether the disk and the directory are sound")
        if number in {None, errno.ENOSPC} and lacks_inodes(self._directory):
            reason, advice = _NO_INODES, _INODE_ADVICE  # ENOSPC covers both
        self.reason = reason
        trouble = self._troubles.get(reason) or Trouble()
        self._troubles.put(reason, trouble)
        cause = "the cache directory cannot be used; pulls pass through"
        if trouble.met(Problem(f"Nothing is kept: {reason}", cause, advice)):
            _log.error(
                "cache directory %s: %s; pulls go on uncached, and nothing is kept; %s",
                self._directory,
                reason,
                advice,
            )

    @property
    def problem(self) -> Problem | None:
        """The trouble of the disk, None if the last write succeeded."""
        trouble = self._troubles.get(self.reason) if self.reason else None
        return None if trouble is None else trouble.problem

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Record errors of the body and re-raise them."""
        try:
            yield
        except (OSError, IndexUnavailableError) as error:
            self.failing(error)
            raise

    def working(self) -> None:
        if not self.reason:
            return
        self.reason = ""
        troubles = filter(None, map(self._troubles.get, self._troubles))
        if [trouble for trouble in troubles if trouble.over() is not None]:
            _log.warning("cache directory %s: works again", self._directory)
