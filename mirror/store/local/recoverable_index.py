"""The index and its disk space, reopened after the cache directory was lost or damaged.

The mirror also runs while the directory is full, read-only or missing.  Until
:meth:`RecoverableIndex.heal` finds the directory usable again, each call raises
IndexUnavailableError.  Runs on the index's thread.
"""

import contextlib
import fcntl
import logging
import math
import os
import time
from collections.abc import Awaitable, Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Final

from mirror.store.interface import IndexUnavailableError
from mirror.store.local.disk_usage import TROUBLES, DiskHealth, taken_by
from mirror.store.local.eviction import Evictor, Limits, Observer, Reservations
from mirror.store.local.index import ObjectIndex
from mirror.store.local.layout import Layout, ObjectKey
from mirror.store.local.sqlite import IndexDamagedError, discard, inode_of

_log = logging.getLogger(__name__)
#: A live process always takes less time between two steps of an adoption or eviction.
_ABANDONED_SECONDS: Final = 60.0
_MEASURE_SECONDS: Final = 1.0
_REBUILD_ROWS: Final = 200  # per call: about 20 ms, in which hits must wait


class RecoverableIndex:
    """An index that can be reopened."""

    def __init__(
        self,
        layout: Layout,
        limits: Limits,
        observer: Observer,
        health: DiskHealth,
        removed: Callable[[ObjectKey], None],
    ) -> None:
        self._removed = removed
        self.reserved: dict[str, int] = {}
        self._layout = layout
        self._limits = limits
        self._directory_bytes = 0
        self._measured = -math.inf  # monotonic time
        self._observer = observer
        self._health = health
        self._told_crowded = False
        self._index: ObjectIndex | None = None
        self._lock: int | None = None

    @property
    def index(self) -> ObjectIndex:
        """The index.

        Raises:
            IndexUnavailableError: the index is not open.
        """
        if self._index is None:
            raise IndexUnavailableError(self._health.reason or "the cache directory is not open")
        return self._index

    @property
    def evictor(self) -> Evictor:
        """The evictor, with the limits and reservations of now.

        Raises:
            IndexUnavailableError: the index is not open.
        """
        return Evictor(
            self._layout,
            self.index,
            self._limits,
            self._observer,
            self.reserved,
            self._tell_crowded,
            self._directory_bytes,
        )

    def measure(self) -> None:
        """Measure the directories, once a second at most; on a failing disk, keep what was found.

        Some milliseconds' work: to be called where no client waits.
        """
        now = time.monotonic()
        if now - self._measured >= _MEASURE_SECONDS:
            with contextlib.suppress(OSError):
                self._directory_bytes = taken_by(self._layout.all_directories())
            self._measured = now

    def _tell_crowded(self, kept: int) -> None:
        """Log once that kept images take the space."""
        if not self._told_crowded:
            self._told_crowded = True
            _log.warning(
                "kept images take %d of at most %d bytes: other images that do not fit are not "
                "cached; raise max_size, or keep less with [[keep]]",
                kept,
                self._limits.max_bytes,
            )

    def limit(self, limits: Limits) -> None:
        """Apply new limits.

        Raises:
            IndexUnavailableError: the index cannot be used; the limits apply once it can.
        """
        self._limits = limits
        self._measured = -math.inf  # so that the new limits hold at once
        self.measure()
        self.index.limit(limits.bounds)

    def open(self) -> None:
        """Open the index and repair the effects of a crash.

        Raises:
            OSError: the directory cannot be used, and waiting will not help.
            UserError: a newer version has written the directory.
        """
        self._layout.check_format()
        try:
            self._open()
        except (OSError, IndexUnavailableError) as error:
            if isinstance(error, OSError) and error.errno not in TROUBLES:
                raise
            self._health.failing(error)

    def heal(self) -> None:
        """Reopen the index if it is closed, damaged or removed.

        It also completes the actions of a process that died, after _ABANDONED_SECONDS.
        """
        if self._sound():
            with contextlib.suppress(OSError, IndexUnavailableError):
                self.index.repair(before=time.time() - _ABANDONED_SECONDS)
            self.measure()
            return
        try:
            self._open()
        except (OSError, IndexUnavailableError) as error:
            self._health.failing(error)
        else:
            self._health.working()

    def _sound(self) -> bool:
        directories = (self._layout.partial, self._layout.reservations, self._layout.pending)
        in_place = self._index is not None and self._index.in_place()
        return in_place and all(directory.is_dir() for directory in directories)

    def _open(self) -> None:
        self.close()
        self._layout.ensure()
        alone = self._locked()
        if inode_of(self._layout.root) is None and any(self._layout.directories()):
            self._layout.rebuild.touch(0o600)
        try:
            self._index = self._repaired(alone=alone)
        except IndexDamagedError as error:
            _log.error("cache directory %s: %s; rebuilding the index", self._layout.root, error)
            self._layout.rebuild.touch(0o600)
            discard(self._layout.root)
            self._index = self._repaired(alone=alone)
        assert self._lock is not None, "the directory was locked above"
        fcntl.flock(self._lock, fcntl.LOCK_SH)
        self.measure()

    def _locked(self) -> bool:
        """Lock the directory; return True if no other process uses it.

        Another process could be in the middle of an adoption.
        """
        self._lock = os.open(self._layout.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            fcntl.flock(self._lock, fcntl.LOCK_SH)  # waits while another process repairs
            return False
        return True

    def _repaired(self, *, alone: bool) -> ObjectIndex:
        index = ObjectIndex(self._layout, self._removed, self._limits.bounds)
        try:
            if alone:
                index.repair()
        except BaseException:
            index.close()
            raise
        return index

    def release(self, partial: Path) -> None:
        """Drop the reservation of a fill; a fill may end while the index is not open."""
        self.reserved.pop(partial.name, None)
        Reservations(self._layout.reservations).forget(partial.name)

    def damaged(self, error: IndexDamagedError) -> None:
        """Close a damaged index until :meth:`heal` reopens it."""
        self.close()
        self._health.failing(error)

    def close(self) -> None:
        index, self._index = self._index, None
        if index is not None:
            with contextlib.suppress(IndexUnavailableError):
                index.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


async def rebuild(
    layout: Layout,
    include: Callable[[list[str]], Awaitable[int]],
    run: Callable[[Callable[[], list[str]]], Awaitable[list[str]]],
) -> None:
    """Rebuild a lost index: pass the names of all files to ``include``, some at a time.

    Rows are inserted while the mirror serves; each file is hashed before it is served for the
    first time.  ``run`` runs blocking work in a thread.

    Raises:
        OSError, IndexUnavailableError: the rebuild must be started again.
    """
    _log.warning("cache directory %s: index lost; rebuilding it from the files", layout.root)
    found = 0
    names = _names(layout)
    while some := await run(lambda: list(islice(names, _REBUILD_ROWS))):
        found += await include(some)
    layout.rebuild.unlink(missing_ok=True)
    _log.warning("index rebuilt: %d objects found; each is verified before it is served", found)


def _names(layout: Layout) -> Iterator[str]:
    for directory in layout.directories():
        yield from (str(file.relative_to(layout.root)) for file in directory.iterdir())
