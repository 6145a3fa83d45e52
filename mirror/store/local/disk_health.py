"""Says once that the disk is in trouble and what to do, and once that it is over."""

import errno
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from mirror.store.local.disk_usage import lacks_inodes
from mirror.store.local.sqlite import IndexUnavailableError

_log = logging.getLogger(__name__)

_NO_INODES: Final = "no inodes left"
_INODE_ADVICE: Final = (
    "remove files that the file system has besides the cache (df -i), or raise min_free so that "
    "the mirror evicts sooner"
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

#: What a disk does that goes by, and is no mistake of whoever chose the directory.
TROUBLES: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO})


class DiskHealth:
    """The state of the cache directory, as the log tells it: one line per change."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.reason = ""

    def failing(self, error: Exception) -> None:
        """Something could not be kept or read."""
        number = error.errno if isinstance(error, OSError) else None
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        advice = _ADVICE.get(number or 0, "see whether the disk and the directory are sound")
        if number in {None, errno.ENOSPC} and lacks_inodes(self._directory):
            reason, advice = _NO_INODES, _INODE_ADVICE  # the system says "no space" for both
        if reason != self.reason:
            self.reason = reason
            _log.error(
                "cache directory %s: %s; pulls go on, straight through, and nothing is kept; %s",
                self._directory,
                reason,
                advice,
            )

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Tell of what goes wrong inside, and let it pass."""
        try:
            yield
        except (OSError, IndexUnavailableError) as error:
            self.failing(error)
            raise

    def working(self) -> None:
        """Something was kept."""
        if self.reason:
            self.reason = ""
            _log.warning("cache directory %s: works again", self._directory)
