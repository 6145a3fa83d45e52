"""Disk usage of files, in whole blocks and inodes.  Independent of the cache.

All functions but ``lacks_inodes`` and ``taken_by`` raise OSError if the file system cannot be
queried.
"""

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

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
