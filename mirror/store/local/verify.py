"""Verification of a stored file.  Blocking: for worker threads."""

import os
from pathlib import Path
from typing import Final

from mirror.oci.digest import Digest

_READ_BYTES: Final = 1024 * 1024


def intact(path: Path, digest: Digest) -> int | None:
    """Hash a file.

    Returns:
        the file's modification time (ns since 1970) if its bytes hash to ``digest``; None if
        they do not, if the file cannot be read, or if it changes during the read.
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
