"""Eviction in the object store: within ``max_size``, the least recently used objects go first.

An object store knows when an object was written, not when it was used.  So each mirror writes an
empty object for what it has used in the last day, once a day.  These marks and the times of writing
are all that eviction needs: it works without Redis, and nothing has to be rebuilt.

One mirror an hour sweeps.  Two that sweep at once do no harm: they find the same oldest objects.
"""

import asyncio
import heapq
import logging
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection
from typing import Final

from mirror.cluster.objects import TIER, Bucket, Listed
from mirror.cluster.tier import Observer, TierError
from mirror.cluster.uploads import path_of
from mirror.store.interface import IndexUnavailableError
from mirror.store.local.layout import BLOBS, MANIFESTS, ObjectKey
from mirror.trouble import Problem, Trouble

_log = logging.getLogger(__name__)

#: What was used after a time (Unix seconds), according to the local store.
Uses = Callable[[float], Awaitable[Collection[ObjectKey]]]

_SWEEP_SECONDS: Final = 3_600.0
_DAY_SECONDS: Final = 86_400.0
#: The age at which a mark is removed; then the time of writing counts again.
_OLD_MARK_SECONDS: Final = 30 * _DAY_SECONDS
LINKS: Final = "links/"
MARKS: Final = "used/"
_SWEPT: Final = "swept"  # written at the begin of a sweep
_EVICTABLE: Final = (f"{BLOBS}/", f"{MANIFESTS}/", LINKS)
#: How much of max_size is left by a sweep that evicts.
_LOW_WATER: Final = 0.95
_REMEDY: Final = (
    "its credentials must list and delete objects; rename or remove what no mirror wrote"
)


class Sweeper:
    """Keeps the object store within ``max_bytes``; 0: there is no limit."""

    def __init__(
        self,
        bucket: Bucket,
        max_bytes: int,
        uses: Uses,
        observer: Observer,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._bucket = bucket
        self.max_bytes = max_bytes
        self._uses = uses
        self._observer = observer
        self._clock = clock
        self._sleep = sleep
        self.trouble = Trouble()

    async def run(self) -> None:
        """Sweep in turns with the other mirrors; run it in the background."""
        while True:
            await self._sleep(_SWEEP_SECONDS * random.uniform(0.5, 1.0))  # noqa: S311
            try:
                await self.sweep()
            except (TierError, IndexUnavailableError, OSError) as error:
                _log.debug("no sweep of %s now: %s", self._bucket.name, error)
                title = f"{self._bucket.name} is not kept within max_size"
                if self._bucket.up and self.trouble.met(Problem(title, str(error), _REMEDY)):
                    _log.warning("%s: %s; %s", title, error, _REMEDY)

    async def sweep(self) -> None:
        """Mark what this mirror uses; evict, unless another mirror has just done so.

        Raises:
            TierError, IndexUnavailableError, OSError: not all of it could be done.
        """
        if not self.max_bytes:
            return
        marks = await self._marked()
        now = self._clock()
        swept = await self._bucket.lookup(_SWEPT)
        # A time far in the future is wrong, and would end all sweeps.
        if swept is not None and abs(now - swept.modified) < _SWEEP_SECONDS / 2:
            return
        await self._bucket.write(_SWEPT, b"")
        total = sum([each.size async for each in self._evictable()])
        self._observer.tier_holds(TIER, total)
        if total > self.max_bytes:
            await self._evict(marks, total - int(_LOW_WATER * self.max_bytes))
        if self.trouble.over() is not None:
            _log.warning("%s is kept within max_size again", self._bucket.name)

    async def _marked(self) -> dict[str, float]:
        """Write the marks of this mirror; return the times of all marks by the marked path."""
        now, marks = self._clock(), dict[str, float]()
        old: list[str] = []
        async for each in self._bucket.list(MARKS):
            if abs(now - each.modified) > _OLD_MARK_SECONDS:
                old.append(each.path)
            else:
                marks[each.path.removeprefix(MARKS)] = each.modified
        for path in old:
            await self._bucket.delete(path)
        for key in await self._uses(now - _DAY_SECONDS):
            path = path_of(key)
            if now - marks.get(path, 0.0) > _DAY_SECONDS:
                await self._bucket.write(f"{MARKS}{path}", b"")
                marks[path] = now
        return marks

    async def _evict(self, marks: dict[str, float], excess: int) -> None:
        """Evict the least recently used objects until ``excess`` bytes are gone."""
        oldest: list[tuple[float, str, int]] = []  # a heap: the most recently used one first
        size = 0
        async for each in self._evictable():
            used = max(each.modified, marks.get(each.path, 0.0))
            heapq.heappush(oldest, (-used, each.path, each.size))
            size += each.size
            while size - oldest[0][2] >= excess:
                size -= heapq.heappop(oldest)[2]
        for _, path, _ in oldest:
            await self._bucket.delete(path)
            if path in marks:
                await self._bucket.delete(f"{MARKS}{path}")
        self._observer.tier_evicted(TIER, len(oldest), size)
        _log.info("evicted %d objects (%d bytes) from %s", len(oldest), size, self._bucket.name)

    async def _evictable(self) -> AsyncGenerator[Listed, None]:
        for prefix in _EVICTABLE:
            async for each in self._bucket.list(prefix):
                yield each
