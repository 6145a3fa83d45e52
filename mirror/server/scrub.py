"""The scrub, in the one process that does it, as often as the configuration says."""

import asyncio

from mirror.server.store import Store
from mirror.store.local.scrub import Scrub


class ScrubTask:
    """Hashes the cache over and over, or not."""

    def __init__(self, store: Store, *, first: bool) -> None:
        """Of several processes only the ``first`` does."""
        self._store = store
        self._first = first
        self._period = 0.0
        self._task: asyncio.Task[None] | None = None

    def every(self, seconds: float) -> None:
        """Do it once in so many seconds from now on, 0 for never; goes on where it was."""
        if seconds == self._period or not self._first:
            return
        self.close()
        self._period = seconds
        if seconds:
            scrub = Scrub(self._store.objects, self._store.layout.scrub, seconds)
            self._task = asyncio.create_task(scrub.run(), name="scrub")

    def close(self) -> None:
        """Stop."""
        if self._task is not None:
            self._task.cancel()
