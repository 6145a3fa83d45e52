"""Slow work on all objects while the mirror serves: old ones expire, damaged ones are removed."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from mirror.store.interface import IndexUnavailableError
from mirror.store.local.index import ObjectIndex
from mirror.store.local.objects import Objects

_WAIT_SECONDS: Final = 60.0  # between rounds; also for an unavailable index
_PAUSE_SECONDS: Final = 0.1  # between two rounds, so that pulls get the index
_BATCH: Final = 32

# JSON log lines have these names.
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


class Scrub:
    """Hashes the whole cache once per ``period`` seconds; resumes after a restart."""

    def __init__(
        self,
        objects: Objects,
        progress: Path,
        period: float,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``progress`` is the file that stores the position."""
        self._objects = objects
        self._progress = progress
        self._period = period
        self._sleep = sleep
        self._clock = clock

    async def run(self) -> None:
        while True:
            with contextlib.suppress(OSError, IndexUnavailableError):
                await self._round()
            await self._sleep(_WAIT_SECONDS)

    async def _round(self) -> None:
        sound = damaged = 0
        async for row in self._objects.rows(after=self._reached()):
            started = self._clock()
            verdict = await self._objects.verify(row.key)
            sound += verdict is True
            damaged += verdict is False
            self._progress.write_text(f"{row.number}\n")
            usage = await self._objects.usage()
            due = self._period * row.takes / max(usage.used_bytes, row.takes, 1)
            await self._sleep(max(0.0, due - (self._clock() - started)))
        self._progress.write_text("0\n")
        _log.info("scrub: %d objects are sound, %d were damaged and dropped", sound, damaged)

    def _reached(self) -> int:
        try:
            return int(self._progress.read_text())
        except (OSError, ValueError):
            return 0
