"""Logs one line when the cache directory fails, with advice, and one when it works again."""

import errno
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from mirror.store.interface import IndexUnavailableError
from mirror.store.local.disk_usage import lacks_inodes

_log = logging.getLogger(__name__)

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
    """The state of the cache directory; each change is logged once."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.reason = ""

    def failing(self, error: Exception) -> None:
        """Record a failure to read or write."""
        number = error.errno if isinstance(error, OSError) else None
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        advice = _ADVICE.get(number or 0, "see whether the disk and the directory are sound")
        if number in {None, errno.ENOSPC} and lacks_inodes(self._directory):
            reason, advice = _NO_INODES, _INODE_ADVICE  # ENOSPC covers both
        if reason != self.reason:
            self.reason = reason
            _log.error(
                "cache directory %s: %s; pulls go on uncached, and nothing is kept; %s",
                self._directory,
                reason,
                advice,
            )

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Record errors of the body and re-raise them."""
        try:
            yield
        except (OSError, IndexUnavailableError) as error:
            self.failing(error)
            raise

    def working(self) -> None:
        """Record a successful write."""
        if self.reason:
            self.reason = ""
            _log.warning("cache directory %s: works again", self._directory)
