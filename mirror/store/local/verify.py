"""Whether a stored file still is what it was stored as.  Blocks: for worker threads."""

import os
from pathlib import Path
from typing import Final

from mirror.oci.digest import Digest

_READ_BYTES: Final = 1024 * 1024


def intact(path: Path, digest: Digest) -> int | None:
    """Hash a file.

    Returns:
        the file's modification time (ns since 1970) where its bytes hash to ``digest``; None
        where they do not, cannot be read, or change while they are.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        before = os.fstat(fd).st_mtime_ns
        hasher, position = digest.hasher(), 0
        while piece := os.pread(fd, _READ_BYTES, position):
            hasher.update(piece)
            position += len(piece)
        same = os.fstat(fd).st_mtime_ns == before
        return before if same and digest.matches(hasher) else None
    except OSError:
        return None
    finally:
        os.close(fd)
