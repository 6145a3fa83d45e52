"""What files take on a disk: whole blocks, and inodes.  Knows nothing of the cache."""

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_BLOCK_BYTES: Final = 4096  # no file system in use gives a file less
_SECTOR_BYTES: Final = 512  # the unit of st_blocks, whatever the file system


@dataclass(frozen=True, slots=True)
class Free:
    """What a file system has left for us: bytes, and inodes (infinite where it has no limit)."""

    bytes: int
    inodes: float


def free_on(path: Path) -> Free:
    """What is left on the file system of ``path``.

    Raises:
        OSError: it cannot be asked.
    """
    there = os.statvfs(path)
    return Free(there.f_bavail * there.f_frsize, there.f_favail if there.f_files else math.inf)


def total_inodes(path: Path) -> int:
    """How many inodes the file system of ``path`` has, 0 where it has no limit.

    Raises:
        OSError: it cannot be asked.
    """
    return os.statvfs(path).f_files


def lacks_inodes(path: Path) -> bool:
    """Whether the file system of ``path`` has no inode left; False where it cannot be asked."""
    try:
        return free_on(path).inodes < 1
    except OSError:
        return False


def block_bytes(path: Path) -> int:
    """The smallest piece of the file system of ``path`` that a file can have, in bytes.

    Raises:
        OSError: it cannot be asked.
    """
    return max(_BLOCK_BYTES, os.statvfs(path).f_frsize)


def in_blocks(size: int, block: int) -> int:
    """What a file of ``size`` bytes takes in blocks of ``block`` bytes.

    The file system's own figure (st_blocks) is not final before the file is on the disk.
    """
    return -(-size // block) * block


def taken_by(paths: Iterable[Path]) -> int:
    """Bytes that files and directories take at the moment; those that are gone take none."""
    return sum(map(_taken, paths))


def _taken(path: Path) -> int:
    try:
        return path.stat(follow_symlinks=False).st_blocks * _SECTOR_BYTES
    except OSError:
        return 0
