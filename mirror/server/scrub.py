"""Runs the scrub, in one process, as often as the configuration says."""

import asyncio

from mirror.server.store import Store
from mirror.store.local.scrub import Scrub


class ScrubTask:
    """Hashes the cache over and over, if configured."""

    def __init__(self, store: Store, *, first: bool) -> None:
        """Only the ``first`` of several processes scrubs."""
        self._store = store
        self._first = first
        self._period = 0.0
        self._task: asyncio.Task[None] | None = None

    def every(self, seconds: float) -> None:
        """Scrub once per ``seconds`` from now on, 0 for never; continues from its last position."""
        if seconds == self._period or not self._first:
            return
        self.close()
        self._period = seconds
        if seconds:
            scrub = Scrub(self._store.objects, self._store.layout.scrub, seconds)
            self._task = asyncio.create_task(scrub.run(), name="scrub")

    def close(self) -> None:
        """Stop the scrub."""
        if self._task is not None:
            self._task.cancel()
