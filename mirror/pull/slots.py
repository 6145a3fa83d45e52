"""What limits downloads: slots for them and their further connections, and room in the cache."""

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from typing import Final

from mirror.pull.outcome import OverloadedError
from mirror.pull.policy import Splitting
from mirror.shares import FullError, Shares
from mirror.shares import Limits as SlotLimits
from mirror.trouble import Problem, Trouble

__all__ = ["SlotLimits", "Slots"]

#: The most further connections, as a share of all downloads: each holds a segment in memory, and
#: many concurrent blobs use the whole bandwidth without them.
_FURTHER_SHARE: Final = 0.25
#: The most memory for the segments of all blobs together, at their full size.
_FURTHER_BYTES: Final = 128 * 1024 * 1024
#: How long no further connection is opened after an upstream has refused or failed one.
_CALM_SECONDS: Final = 60.0


class Slots:
    """Limits concurrent downloads."""

    def __init__(
        self, limits: SlotLimits, splitting: Splitting, give_way: Callable[[], None] = lambda: None
    ) -> None:
        """Call ``give_way`` when a download has to wait: it ends those that can wait."""
        self.splitting = splitting
        self._give_way = give_way
        self._shares = Shares("download", limits)
        self._further: Counter[str] = Counter()
        self._calm_until: dict[str, float] = {}

    def change(self, limits: SlotLimits, splitting: Splitting) -> None:
        """Apply new limits; running downloads continue, and count."""
        self.splitting = splitting
        self._shares.change(limits)

    @asynccontextmanager
    async def taken(self, upstream: str) -> AsyncIterator[None]:
        """Hold a slot; wait until one is free.

        Raises:
            OverloadedError: too many downloads wait already, or no slot became free in time.
        """
        try:
            hold = self._shares.try_hold(upstream)
            if hold is None:
                self._give_way()
                hold = await self._shares.hold(upstream)
        except FullError as error:
            raise OverloadedError(upstream, error.message, error.retry_after) from error
        try:
            yield
        finally:
            hold.release()

    def spare(self, upstream: str) -> int:
        """How many downloads that no client waits for may begin now."""
        return self._shares.spare(upstream) - self._further.total()

    def try_taken(self, upstream: str) -> AbstractContextManager[None] | None:
        """Return a slot for one more connection of a running download; enter it at once.

        None if no slot can be spared: a further connection never makes another download wait.
        """
        now = asyncio.get_running_loop().time()
        further, shares = self._further, self._shares
        limits = shares.limits
        spare = (
            now >= self._calm_until.get(upstream, 0.0)
            and further.total() < limits.size * _FURTHER_SHARE
            and further.total() < max(1, _FURTHER_BYTES // self.splitting.segment_bytes)
            and further.total() + shares.taken < limits.size
            and further[upstream] + shares.held_for(upstream) < limits.of_upstream(upstream)
            and not shares.waiting
        )
        return self._further_taken(upstream) if spare else None

    def calm(self, upstream: str) -> None:
        """Open no further connections to ``upstream`` for a while, since one was refused."""
        self._calm_until[upstream] = asyncio.get_running_loop().time() + _CALM_SECONDS

    @contextmanager
    def _further_taken(self, upstream: str) -> Iterator[None]:
        self._further[upstream] += 1
        try:
            yield
        finally:
            self._further[upstream] -= 1


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
