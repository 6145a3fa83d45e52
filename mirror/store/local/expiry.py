"""Slowly removes objects that have not been pulled for ``max_age``, except kept ones."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Final

from mirror.store.interface import IndexUnavailableError
from mirror.store.local.index import ObjectIndex
from mirror.store.local.objects import Objects

_WAIT_SECONDS: Final = 60.0
_PAUSE_SECONDS: Final = 0.1  # between two rounds, so that pulls get the index
_BATCH: Final = 32

_log = logging.getLogger(__name__)


class Expiry:
    """Removes objects that were last used more than ``max_age`` seconds ago."""

    def __init__(
        self,
        objects: Objects,
        max_age: float,
        ready: Callable[[], Awaitable[bool]],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] | None = None,
    ) -> None:
        """``ready`` returns False while the kept objects are unknown; nothing expires then."""
        self._objects = objects
        self._max_age = max_age
        self._ready = ready
        self._sleep = sleep
        self._clock = clock or _steady_clock()

    async def run(self) -> None:
        """Run until cancelled."""
        while True:
            with contextlib.suppress(OSError, IndexUnavailableError):  # heal() repairs the index
                if await self._ready():
                    await self._round()
            await self._sleep(_WAIT_SECONDS)

    async def _round(self) -> None:
        await self._objects.flush_touches()
        before, count, total = self._clock() - self._max_age, 0, 0
        while sizes := await self._objects.consult(lambda index: _expire(index, before)):
            count += len(sizes)
            total += sum(sizes)
            await self._sleep(_PAUSE_SECONDS)
        if count:
            _log.info("max_age: expired %d objects (%d bytes)", count, total)


def _steady_clock() -> Callable[[], float]:
    """Return a clock in Unix seconds that ignores later changes of the system clock."""
    ahead = time.time() - time.monotonic()
    return lambda: time.monotonic() + ahead


def _expire(index: ObjectIndex, before: float) -> list[int]:
    """Remove a batch of objects last used ``before`` (Unix seconds); return their sizes."""
    old = [key for key, used in index.oldest(_BATCH) if used < before]
    return [index.remove(key) for key in old]
