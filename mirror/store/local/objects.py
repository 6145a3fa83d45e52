"""Objects as the rest of the program sees them: awaitable, bounded, touched when used.

One thread owns the index and everything that must agree with it (room, adoption, eviction);
this module is the only way to that thread.  A hit costs one hop: the row is read and the file
opened in the same visit, so that no eviction can come between.
"""

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import AsyncGenerator, Callable, Iterable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Final, ParamSpec, TypeVar

from mirror.descriptor import Descriptor
from mirror.store.local.disk_health import DiskHealth
from mirror.store.local.entry_cache import EntryCache, OpenObject
from mirror.store.local.eviction import Limits, Observer
from mirror.store.local.index import ObjectEntry, ObjectIndex, Row
from mirror.store.local.layout import Layout, ObjectKey
from mirror.store.local.opening import kept
from mirror.store.local.partial import Partial
from mirror.store.local.rebuild import rebuild
from mirror.store.local.recoverable_index import RecoverableIndex, media_type_of
from mirror.store.local.sqlite import IndexDamagedError, IndexUnavailableError
from mirror.store.local.verify import intact
from mirror.threads import Threads

P = ParamSpec("P")
R = TypeVar("R")
_log = logging.getLogger(__name__)
_PAGE: Final = 500


@dataclass(frozen=True, slots=True)
class Usage:
    """What the cache holds right now, in bytes on the disk and objects.

    ``used_bytes`` are blobs, manifests and partial files, ``overhead_bytes`` databases and
    directories: together they keep within ``max_bytes``.
    """

    used_bytes: int
    overhead_bytes: int
    objects: int
    max_bytes: int


@dataclass(frozen=True, slots=True)
class _Found:
    """An opened object; ``trusted``: nobody has written to its file since it was verified."""

    entry: ObjectEntry
    opened: OpenObject
    trusted: bool


class Objects:
    """The store of whole objects and of the partial files that become objects."""

    def __init__(
        self,
        layout: Layout,
        limits: Limits,
        observer: Observer,
        threads: Executor,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Use ``threads`` for what hashes or walks the tree."""
        self.alarm = DiskHealth(layout.root)
        self._layout = layout
        self._limits = limits
        self._observer = observer
        self._threads = threads
        self._clock = clock
        self._touched: dict[ObjectKey, float] = {}
        self._verifying: dict[ObjectKey, asyncio.Task[bool | None]] = {}
        self._rebuilding: asyncio.Task[None] | None = None
        self._known = EntryCache()
        self._watchers: list[Callable[[ObjectKey], None]] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._recoverable = RecoverableIndex(layout, limits, observer, self.alarm, self._removed)
        self._thread = Threads(1, "index")

    # Opening, healing, closing.

    async def open(self) -> None:
        """Open the index and repair what a crash left.

        Raises:
            OSError: the directory is not one that could ever be used.
        """
        self._loop = asyncio.get_running_loop()
        await self._visit(self._recoverable.open)
        self._rebuild_if_lost()

    async def heal(self) -> None:
        """Open again what was damaged, removed, or could not be opened; to be called often."""
        await self._visit(self._recoverable.heal)
        self._rebuild_if_lost()

    def _rebuild_if_lost(self) -> None:
        idle = self._rebuilding is None or self._rebuilding.done()
        if idle and self._layout.rebuild.exists():
            self._rebuilding = asyncio.create_task(self._rebuild(), name="rebuild")

    async def _rebuild(self) -> None:
        with contextlib.suppress(OSError, IndexUnavailableError):  # heal begins it again
            await rebuild(self._layout, self._include, self._run)

    async def rebuilt(self) -> None:
        """Wait until all files are found again, if the index was lost."""
        if self._rebuilding is not None:
            await asyncio.wait([self._rebuilding])

    async def _include(self, names: list[str]) -> int:
        return await self._visit(lambda: self._recoverable.index.include(names, media_type_of))

    async def close(self) -> None:
        """Write down what was touched and close the index."""
        tasks = [*self._verifying.values(), *filter(None, [self._rebuilding])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.flush_touches()
        await self._visit(self._recoverable.close)
        self._thread.shutdown()

    async def limit(self, limits: Limits) -> None:
        """Keep within other limits from now on, evicting at once what is too much.

        Raises:
            OSError, IndexUnavailableError: the disk or the index cannot be used now.
        """
        self._limits = limits
        await self.flush_touches()
        with self.alarm.watching():
            await self._visit(self._recoverable.limit, limits)
            await self._evicting(lambda: self._recoverable.space.make_room(0))

    # What is stored.

    def watch(self, watcher: Callable[[ObjectKey], None]) -> None:
        """Have ``watcher`` told, on the loop, of every object that goes."""
        self._watchers.append(watcher)

    def _removed(self, key: ObjectKey) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self.let_go, key)

    def let_go(self, key: ObjectKey) -> None:
        """Forget what was found out about an object, which may have gone in another process."""
        self._known.forget(key)
        for watcher in self._watchers:
            watcher(key)

    def touch(self, key: ObjectKey) -> None:
        """An object was used without being looked up."""
        self._touched[key] = self._clock()

    async def lookup(self, key: ObjectKey) -> OpenObject | None:
        """Open a stored object, or None.  An index that cannot be read is a miss.

        A file that was written to behind our back, or whose row was lost, is hashed first.
        """
        opened = self._known.open(key)
        if opened is not None:
            self._touched[key] = self._clock()
            return opened
        try:
            found = await self._found(key)
            if found is not None and not found.trusted:
                found.opened.close()
                found = await self._found(key) if await self.verify(key) else None
        except (IndexUnavailableError, OSError) as error:
            _log.debug("looking up %s: %s", key, error)
            return None
        if found is None:
            return None
        if not found.trusted:  # written to once more since it was hashed
            found.opened.close()
            return None
        self._touched[key] = self._clock()
        self._known.remember(found.entry)
        return found.opened

    async def _found(self, key: ObjectKey) -> _Found | None:
        return await kept(self._visit(self._lookup, key), _close)

    def _lookup(self, key: ObjectKey) -> _Found | None:
        index = self._recoverable.index
        entry = index.lookup(key)
        if entry is None:
            return None
        try:
            fd = os.open(entry.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            index.remove(key)
            return None
        there = os.fstat(fd)
        if there.st_size != entry.size:
            os.close(fd)
            index.remove(key)
            return None
        opened = OpenObject(Descriptor(fd), entry.size, entry.media_type, entry.path)
        return _Found(entry, opened, trusted=there.st_mtime_ns == entry.modified)

    async def verify(self, key: ObjectKey) -> bool | None:
        """Hash an object, once for all who ask; drop it where it is damaged.

        Returns:
            whether it is sound, None where there is none.

        Raises:
            IndexUnavailableError: what was found could not be noted.
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
            task.exception()  # whoever asked may have left

    async def _verify(self, key: ObjectKey) -> bool | None:
        entry = await self._visit(lambda: self._recoverable.index.lookup(key))
        if entry is None:
            return None
        modified = await self._run(lambda: intact(entry.path, key.digest))
        return await self._visit(self._note, entry, modified)

    def _note(self, entry: ObjectEntry, modified: int | None) -> bool | None:
        index = self._recoverable.index
        if index.lookup(entry.key) != entry:  # evicted or replaced in the meantime
            return None
        if modified is None:
            _log.warning("%s was altered on disk; it is dropped", entry.key)
            index.remove(entry.key)
            return False
        if modified != entry.modified:
            index.vouch(entry, modified)
        return True

    async def held(self, keys: Iterable[ObjectKey]) -> set[ObjectKey]:
        """Which of some objects there are, without using them.

        Raises:
            IndexUnavailableError: the index cannot be read.
        """
        wanted = list(keys)
        return await self._visit(
            lambda: {key for key in wanted if self._recoverable.index.lookup(key) is not None}
        )

    async def rows(self, after: int = 0) -> AsyncGenerator[Row, None]:
        """All objects after row number ``after``, in the order they were stored.

        Raises:
            IndexUnavailableError: the index cannot be read.
        """
        while rows := await self._visit(self._rows_after, after):
            for row in rows:
                yield row
            after = rows[-1].number

    def _rows_after(self, number: int) -> list[Row]:
        return self._recoverable.index.rows_after(number, _PAGE)

    async def consult(self, question: Callable[[ObjectIndex], R]) -> R:
        """Ask the index something, or have something done to it, on its thread.

        Raises:
            IndexUnavailableError: it cannot be used.
        """
        return await self._visit(lambda: question(self._recoverable.index))

    # What is to be stored.

    async def reserve(self, partial: Partial, size: int, total: int | None) -> bool:
        """Make sure that a partial file may grow to ``size`` bytes, evicting for it.

        ``total`` is what the whole blob has, None where nobody knows.

        Raises:
            OSError, IndexUnavailableError: the disk or the index cannot be used.
        """
        await self.flush_touches()
        with self.alarm.watching():
            return await self._evicting(
                lambda: self._recoverable.space.reserve(partial.path, size, total)
            )

    async def release(self, partial: Partial) -> None:
        """Give back what :meth:`reserve` promised."""
        await self._visit(self._recoverable.release, partial.path)

    async def adopt(
        self, key: ObjectKey, partial: Partial, media_type: str = "", origin: str = ""
    ) -> None:
        """Make a whole, verified partial file an object.

        Raises:
            OSError, IndexUnavailableError: it could not be kept.
        """
        with self.alarm.watching():
            await self._visit(self._adopt, key, partial, media_type, origin)
        self.alarm.working()

    def _adopt(self, key: ObjectKey, partial: Partial, media_type: str, origin: str) -> None:
        recoverable = self._recoverable
        recoverable.space.release(partial.path)
        recoverable.index.adopt(key, partial.path, partial.length, media_type, origin)

    async def make_room(self, incoming: int) -> bool:
        """Evict until ``incoming`` more bytes fit; False when they never can."""
        await self.flush_touches()
        with self.alarm.watching():
            return await self._evicting(lambda: self._recoverable.space.make_room(incoming))

    async def _evicting(self, step: Callable[[], bool | None]) -> bool:
        """Take all steps; between two of them others have the thread: 100,000 take 2 s."""
        while (fits := await self._visit(step)) is None:
            pass
        return fits

    async def forget(self, key: ObjectKey) -> bool:
        """Drop an object; say whether it was there."""
        return await self._visit(lambda: self._recoverable.index.remove(key)) > 0

    async def usage(self) -> Usage:
        """What the cache holds right now."""
        return await self._visit(self._usage)

    def _usage(self) -> Usage:
        recoverable = self._recoverable
        space = recoverable.space
        sizes = space.used_bytes(), space.overhead_bytes()
        return Usage(*sizes, recoverable.index.count(), self._limits.max_bytes)

    async def flush_touches(self) -> None:
        """Tell the index what was used since the last call."""
        touched, self._touched = self._touched, {}
        if touched:
            with contextlib.suppress(IndexUnavailableError):  # LRU order is worth no failure
                await self._visit(lambda: self._recoverable.index.touch(touched))

    async def _visit(self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(
            self._thread, lambda: self._guarded(lambda: function(*args, **kwargs))
        )

    def _guarded(self, function: Callable[[], R]) -> R:
        try:
            return function()
        except IndexDamagedError as error:
            self._recoverable.damaged(error)
            raise

    async def _run(self, function: Callable[[], R]) -> R:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function)


def _close(found: _Found | None) -> None:
    if found is not None:
        found.opened.close()
