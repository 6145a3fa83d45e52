"""How many downloads there may be at once, and how many may wait for one to end."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

from mirror.pull.errors import OverloadedError

_RETRY_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class SlotLimits:
    """``running`` downloads at once, ``waiting`` in line, each for at most ``patience`` seconds."""

    running: int
    waiting: int
    patience: float


class Slots:
    """Lets in as many as there is room for; a full house says so."""

    def __init__(self, limits: SlotLimits) -> None:
        self._limits = limits
        self._free = asyncio.Semaphore(limits.running)
        self._waiting = 0

    @asynccontextmanager
    async def taken(self, upstream: str) -> AsyncIterator[None]:
        """Hold a slot, after waiting for one if need be.

        Raises:
            OverloadedError: too many wait already, or none came free in time.
        """
        await self._take(upstream)
        try:
            yield
        finally:
            self._free.release()

    async def _take(self, upstream: str) -> None:
        if self._free.locked() and self._waiting >= self._limits.waiting:
            raise OverloadedError(upstream, "too many downloads wait already", _RETRY_SECONDS)
        self._waiting += 1
        try:
            async with asyncio.timeout(self._limits.patience):
                await self._free.acquire()
        except TimeoutError as error:
            text = "no download ended in time to begin another"
            raise OverloadedError(upstream, text, _RETRY_SECONDS) from error
        finally:
            self._waiting -= 1
