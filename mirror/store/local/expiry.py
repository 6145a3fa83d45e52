"""Drops objects that nobody has pulled for long, slowly; what is kept stays."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Final

from mirror.store.local.index import ObjectIndex
from mirror.store.local.objects import Objects
from mirror.store.local.sqlite import IndexUnavailableError

_WAIT_SECONDS: Final = 60.0
_PAUSE_SECONDS: Final = 0.1  # after each batch: a pull that needs the index goes first
_BATCH: Final = 32

_log = logging.getLogger(__name__)


class Expiry:
    """Lets go what was last used more than ``max_age`` seconds ago."""

    def __init__(
        self,
        objects: Objects,
        max_age: float,
        ready: Callable[[], Awaitable[bool]],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] | None = None,
    ) -> None:
        """Do nothing while it is not ``ready``, since it is not known what is kept."""
        self._objects = objects
        self._max_age = max_age
        self._ready = ready
        self._sleep = sleep
        self._clock = clock or _steady_clock()

    async def run(self) -> None:
        """Go on for ever."""
        while True:
            with contextlib.suppress(OSError, IndexUnavailableError):  # it is healed meanwhile
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
            _log.info("max_age: %d objects, %d bytes, that nobody pulled are gone", count, total)


def _steady_clock() -> Callable[[], float]:
    """Unix seconds as they were now, and as they pass: a clock that is set makes nothing older."""
    ahead = time.time() - time.monotonic()
    return lambda: time.monotonic() + ahead


def _expire(index: ObjectIndex, before: float) -> list[int]:
    """Remove a few objects that were last used ``before``; their sizes."""
    old = [key for key, used in index.oldest(_BATCH) if used < before]
    return [index.remove(key) for key in old]
