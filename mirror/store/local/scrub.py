"""Hashes all stored objects slowly and repeatedly, to detect damage on the storage medium."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from mirror.store.interface import IndexUnavailableError
from mirror.store.local.objects import Objects

_log = logging.getLogger(__name__)
_WAIT_SECONDS = 60.0  # between rounds; also for an empty cache or an unavailable index


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
        """Run until cancelled."""
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
