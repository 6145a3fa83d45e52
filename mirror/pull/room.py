"""Whether content finds room in the cache; the log says once that it does not."""

import logging
from typing import Final

from mirror.trouble import Problem, Trouble

_log = logging.getLogger(__name__)
_MIB: Final = 1 << 20
_REMEDY: Final = (
    "raise [cache] max_size, or free some space or inodes on the disk or lower [cache] min_free"
)


class Room:
    """The room in the cache, as the last fills found it."""

    def __init__(self) -> None:
        self._trouble = Trouble()

    def lacking(self, upstream: str, repository: str, size: int) -> None:
        """Note that ``size`` bytes of a repository could not be stored, for lack of room."""
        mib = max(size / _MIB, 0.1)
        cause = f"{upstream}/{repository}: no room for {mib:.1f} MiB, not kept"
        if self._trouble.met(Problem("Content finds no room in the cache", cause, _REMEDY)):
            _log.warning(
                "%s/%s: no room in the cache for %.1f MiB; content that does not fit passes "
                "through uncached: %s",
                *(upstream, repository, mib, _REMEDY),
            )

    @property
    def problem(self) -> Problem | None:
        """The lack of room, None if the last blob was stored."""
        return self._trouble.problem

    def found(self) -> None:
        """Note that a blob was stored."""
        self._trouble.over()
