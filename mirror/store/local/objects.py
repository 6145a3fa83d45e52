"""The asynchronous interface to the stored objects.

One thread owns the index and all that must be consistent with it (disk space, adoption,
eviction); only this module uses that thread.  A hit costs one thread hop: the row is read and the
file opened in the same call, so that no eviction can occur in between.  All methods except
``lookup``, ``release`` and ``flush_touches`` raise IndexUnavailableError if the index cannot be
used.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Callable, Iterable
from concurrent.futures import Executor
from typing import Final, TypeVar

from mirror.lru import Lru
from mirror.store.interface import IndexUnavailableError
from mirror.store.local.disk_usage import DiskHealth
from mirror.store.local.entry import ObjectEntry, OpenObject, Row
from mirror.store.local.eviction import Limits, Observer, Usage
from mirror.store.local.index import ObjectIndex
from mirror.store.local.layout import Layout, ObjectKey
from mirror.store.local.partial import Partial
from mirror.store.local.recoverable_index import RecoverableIndex, rebuild
from mirror.store.local.sqlite import IndexDamagedError
from mirror.threads import Threads, opened_or_closed, run_in

R = TypeVar("R")
_log = logging.getLogger(__name__)
_MOST_USED: Final = 10_000
_PAGE: Final = 500
_MOST_ENTRIES: Final = 100_000  # in memory, about 500 bytes each


class Objects:
    """The store of complete objects and of the partial files that become objects."""

    def __init__(
        self,
        layout: Layout,
        limits: Limits,
        observer: Observer,
        threads: Executor,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """``threads`` runs the work that hashes files or walks the tree."""
        self.health = DiskHealth(layout.root)
        self._layout = layout
        self._threads = threads
        self._clock = clock
        self._touched: dict[ObjectKey, float] = {}
        self._verifying: dict[ObjectKey, asyncio.Task[bool | None]] = {}
        self._rebuilding: asyncio.Task[None] | None = None
        self._trusted: Lru[ObjectKey, ObjectEntry] = Lru(_MOST_ENTRIES)
        self._watchers: list[Callable[[ObjectKey], None]] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._recoverable = RecoverableIndex(layout, limits, observer, self.health, self._removed)
        self._thread = Threads(1, "index")

    # Opening, healing, closing.

    async def open(self) -> None:
        """Open the index and repair the effects of a crash.

        Raises:
            OSError: the directory cannot be used, and waiting will not help.
            UserError: a newer version has written the directory.
        """
        self._loop = asyncio.get_running_loop()
        await self._call(self._recoverable.open)
        self._rebuild_if_lost()

    async def heal(self) -> None:
        """Reopen the index if it is closed, damaged or removed; to be called often."""
        await self._call(self._recoverable.heal)
        self._rebuild_if_lost()

    def _rebuild_if_lost(self) -> None:
        idle = self._rebuilding is None or self._rebuilding.done()
        if idle and self._layout.rebuild.exists():
            self._rebuilding = asyncio.create_task(self._rebuild(), name="rebuild")

    async def _rebuild(self) -> None:
        with contextlib.suppress(OSError, IndexUnavailableError):  # heal() starts it again
            await rebuild(
                self._layout, self._include, lambda function: run_in(self._threads, function)
            )

    async def rebuilt(self) -> None:
        """Wait for the end of a rebuild, if the index was lost."""
        if self._rebuilding is not None:
            await asyncio.wait([self._rebuilding])

    async def _include(self, names: list[str]) -> int:
        return await self.consult(lambda index: index.include(names))

    async def close(self) -> None:
        """Write the pending times of use and close the index."""
        tasks = [*self._verifying.values(), *filter(None, [self._rebuilding])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.flush_touches()
        await self._call(self._recoverable.close)
        self._thread.shutdown()

    async def limit(self, limits: Limits) -> None:
        """Apply new limits and evict the excess at once.

        Raises:
            OSError, IndexUnavailableError: the disk or the index cannot be used.
        """
        with self.health.watching():
            await self._call(lambda: self._recoverable.limit(limits))
            await self._evicting(lambda: self._recoverable.evictor.make_room(0))

    # Stored objects.

    def watch(self, watcher: Callable[[ObjectKey], None]) -> None:
        """Call ``watcher``, on the event loop, for every object that is removed."""
        self._watchers.append(watcher)

    def _removed(self, key: ObjectKey) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.let_go, key)

    def let_go(self, key: ObjectKey) -> None:
        """Drop the cached entry of an object, which another process may have removed."""
        self._trusted.pop(key)
        for watcher in self._watchers:
            watcher(key)

    def touch(self, key: ObjectKey) -> None:
        """Record the use of an object that was not looked up."""
        self._touched[key] = self._clock()

    async def lookup(self, key: ObjectKey, origin: str = "") -> OpenObject | None:
        """Open a stored object; None on a miss or if the index cannot be read.

        A private object is a miss unless ``origin`` is the mark of its upstream.

        A file that another program has written to, or whose row was lost, is hashed first.
        """
        opened = self._open_trusted(key)
        if opened is None:
            try:
                opened = await self._opened(key)
                if opened is not None and not opened.trusted:
                    opened.close()
                    opened = await self._opened(key) if await self.verify(key) else None
            except (IndexUnavailableError, OSError) as error:
                _log.debug("looking up %s: %s", key, error)
                return None
            if opened is None:
                return None
            if not opened.trusted:  # written to again after it was hashed
                opened.close()
                return None
            self._trusted.put(key, opened.entry)
        self._touched[key] = self._clock()
        if key.private_twin is None and opened.origin != origin:
            opened.close()
            return None
        return opened

    def _open_trusted(self, key: ObjectKey) -> OpenObject | None:
        """Open an object without a look into the index, if it was looked up before."""
        entry = self._trusted.get(key)
        if entry is None:
            return None
        with contextlib.suppress(OSError):
            opened = entry.open()
            if opened.trusted:
                return opened
            opened.close()
        self._trusted.pop(key)
        return None

    async def _opened(self, key: ObjectKey) -> OpenObject | None:
        return await opened_or_closed(
            self.consult(lambda index: _open(index, key)),
            lambda opened: None if opened is None else opened.close(),
        )

    async def verify(self, key: ObjectKey) -> bool | None:
        """Hash an object and remove it if it is damaged; concurrent calls share one run.

        Returns:
            True if the object is intact, False if damaged, None if it is not stored.

        Raises:
            IndexUnavailableError: the result could not be recorded.
        """
        task = self._verifying.get(key)
        if task is None:
            task = asyncio.create_task(self._verify(key), name=f"verify {key}")
            self._verifying[key] = task
            task.add_done_callback(lambda done: self._verified(key, done))
        return await asyncio.shield(task)

    def _verified(self, key: ObjectKey, task: asyncio.Task[bool | None]) -> None:
        del self._verifying[key]
        if not task.cancelled():
            task.exception()  # retrieve it: all callers may have been cancelled

    async def _verify(self, key: ObjectKey) -> bool | None:
        entry = await self.consult(lambda index: index.lookup(key))
        if entry is None:
            return None
        modified = await run_in(self._threads, entry.hashed)
        return await self.consult(lambda index: _record_verdict(index, entry, modified))

    async def held(self, keys: Iterable[ObjectKey]) -> set[ObjectKey]:
        """Return those of the objects that are stored, without recording a use."""
        wanted = list(keys)
        return await self.consult(lambda index: set(index.held(wanted)))

    async def used_after(self, time: float) -> list[ObjectKey]:
        """Return the public objects used after ``time`` (Unix seconds), at most some thousands.

        Raises:
            OSError, IndexUnavailableError: the index cannot be read.
        """
        found = await self.consult(lambda index: index.used_after(time, _MOST_USED))
        return [key for key in found if key.private_twin is not None]

    async def rows(self, after: int = 0) -> AsyncGenerator[Row, None]:
        """Yield all objects after row number ``after``, in the order they were stored."""
        while rows := await self._rows_after(after):
            for row in rows:
                yield row
            after = rows[-1].number

    async def _rows_after(self, number: int) -> list[Row]:
        return await self.consult(lambda index: index.rows_after(number, _PAGE))

    async def consult(self, question: Callable[[ObjectIndex], R]) -> R:
        """Call ``question`` with the index, on the index's thread, and return its result."""
        return await self._call(lambda: question(self._recoverable.index))

    # Objects to be stored.

    async def reserve(self, partial: Partial, size: int, total: int | None) -> bool:
        """Reserve space for a partial file to grow to ``size`` bytes, by eviction if needed.

        ``total`` is the size of the blob in bytes, None if unknown.

        Returns:
            False if the space is not available.

        Raises:
            OSError, IndexUnavailableError: the disk or the index cannot be used.
        """
        with self.health.watching():
            return await self._evicting(
                lambda: self._recoverable.evictor.reserve(partial.path, size, total)
            )

    async def release(self, partial: Partial) -> None:
        await self._call(lambda: self._recoverable.release(partial.path))

    async def adopt(
        self, key: ObjectKey, partial: Partial, media_type: str = "", origin: str = ""
    ) -> None:
        """Store a complete, verified partial file as an object.

        Raises:
            OSError, IndexUnavailableError: the object could not be stored.
        """
        with self.health.watching():
            await self._call(lambda: self._adopt(key, partial, media_type, origin))
        self.health.working()

    def _adopt(self, key: ObjectKey, partial: Partial, media_type: str, origin: str) -> None:
        recoverable = self._recoverable
        recoverable.release(partial.path)
        recoverable.index.adopt(key, partial.path, partial.length, media_type, origin)
        recoverable.measure()  # it may have a new directory

    async def make_room(self, incoming: int) -> bool:
        """Evict until ``incoming`` more bytes fit; return False if they cannot fit."""
        with self.health.watching():
            return await self._evicting(lambda: self._recoverable.evictor.make_room(incoming))

    async def _evicting(self, step: Callable[[], bool | None]) -> bool:
        """Run ``step`` until it is done; other calls run in between: 100,000 evictions take 2 s.

        The times of use are written first, in the same call: a client waits for the first step.
        """
        touched, self._touched = self._touched, {}
        fits = await self._call(lambda: self._first_step(touched, step))
        while fits is None:
            fits = await self._call(step)
        return fits

    def _first_step(
        self, touched: dict[ObjectKey, float], step: Callable[[], bool | None]
    ) -> bool | None:
        with contextlib.suppress(IndexUnavailableError):  # a wrong LRU order is harmless
            self._recoverable.index.touch(touched)
        return step()

    async def forget(self, key: ObjectKey) -> bool:
        """Remove an object; return True if it was stored."""
        return await self.consult(lambda index: index.remove(key)) > 0

    async def usage(self) -> Usage:
        return await self._call(self._usage)

    def _usage(self) -> Usage:
        return self._recoverable.evictor.usage()

    async def flush_touches(self) -> None:
        """Write the times of use since the last call to the index."""
        touched, self._touched = self._touched, {}
        if touched:
            with contextlib.suppress(IndexUnavailableError):  # a wrong LRU order is harmless
                await self.consult(lambda index: index.touch(touched))

    async def _call(self, function: Callable[[], R]) -> R:
        return await run_in(self._thread, lambda: self._guarded(function))

    def _guarded(self, function: Callable[[], R]) -> R:
        try:
            return function()
        except IndexDamagedError as error:
            self._recoverable.damaged(error)
            raise


def _open(index: ObjectIndex, key: ObjectKey) -> OpenObject | None:
    """Open an object, or remove its row if the file is missing or has another size."""
    entry = index.lookup(key)
    if entry is not None:
        try:
            return entry.open()
        except FileNotFoundError:
            index.remove(key)
    return None


def _record_verdict(index: ObjectIndex, entry: ObjectEntry, modified: int | None) -> bool | None:
    if index.lookup(entry.key) != entry:  # evicted or replaced in the meantime
        return None
    if modified is None:
        _log.warning("%s: file was altered on disk; removing it from the cache", entry.key)
        index.remove(entry.key)
        return False
    if modified != entry.modified:
        index.vouch(entry, modified)
    return True
