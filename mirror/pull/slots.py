"""How many downloads at once, how many wait for one to end, and who may have more connections."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from typing import Final

from mirror.pull.errors import OverloadedError
from mirror.pull.policy import Splitting
from mirror.shares import FullError, Shares
from mirror.shares import Limits as SlotLimits

__all__ = ["SlotLimits", "Slots"]

#: Further connections for one blob are at most this share of all downloads: each holds a segment
#: in memory, and many blobs at once fill the line by themselves.
_FURTHER_SHARE: Final = 0.25
#: What the segments of all blobs together may take in memory, at their full size.
_FURTHER_BYTES: Final = 128 * 1024 * 1024
#: How long an upstream that minded a further connection is not asked for another.
_CALM_SECONDS: Final = 60.0


class Slots:
    """Lets in as many downloads as there is room for; a full house says so."""

    def __init__(self, limits: SlotLimits, splitting: Splitting) -> None:
        self.splitting = splitting
        self._shares = Shares("download", limits)
        self._further: Counter[str] = Counter()
        self._calm_until: dict[str, float] = {}

    def change(self, limits: SlotLimits, splitting: Splitting) -> None:
        """Other limits from now on; what runs already goes on, and counts."""
        self.splitting = splitting
        self._shares.change(limits)

    @asynccontextmanager
    async def taken(self, upstream: str) -> AsyncIterator[None]:
        """Hold a slot, after waiting for one if need be.

        Raises:
            OverloadedError: too many wait already, or none came free in time.
        """
        try:
            hold = await self._shares.hold(upstream)
        except FullError as error:
            raise OverloadedError(upstream, error.message, error.retry_after) from error
        try:
            yield
        finally:
            hold.release()

    def try_taken(self, upstream: str) -> AbstractContextManager[None] | None:
        """A slot for one more connection of a download that has one already, to be entered now.

        None where there is none to spare: no other download ever waits for such a slot.
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
        """Ask ``upstream`` for no further connections for a while, since it minded one."""
        self._calm_until[upstream] = asyncio.get_running_loop().time() + _CALM_SECONDS

    @contextmanager
    def _further_taken(self, upstream: str) -> Iterator[None]:
        self._further[upstream] += 1
        try:
            yield
        finally:
            self._further[upstream] -= 1
