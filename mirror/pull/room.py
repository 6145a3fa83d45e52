"""Whether content finds room in the cache; the log says once that it does not."""

import logging
from typing import Final

from mirror.trouble import Trouble

_log = logging.getLogger(__name__)
_MIB: Final = 1 << 20


class Room:
    """The room in the cache, as the last fills found it."""

    def __init__(self) -> None:
        self._trouble = Trouble()

    def lacking(self, upstream: str, repository: str, size: int) -> None:
        """Note that ``size`` bytes of a repository could not be stored, for lack of room."""
        if self._trouble.met():
            _log.warning(
                "%s/%s: no room in the cache for %.1f MiB; content that does not fit passes "
                "through uncached: raise [cache] max_size, or free some space on the disk or lower "
                "[cache] min_free",
                *(upstream, repository, size / _MIB),
            )

    def found(self) -> None:
        """Note that a blob was stored."""
        self._trouble.over()
