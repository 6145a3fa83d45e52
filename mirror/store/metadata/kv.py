"""An asynchronous key-value store for small records.  It recovers when its directory is lost.

One thread owns the database.  A damaged database is replaced with an empty one.  While the
database is unavailable, lookups return None and all other methods raise IndexUnavailableError.
Separate from the object index, so that counting objects stays cheap and the loss of one database
does not affect the other.
"""

import contextlib
import logging
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any, Final, TypeVar

from mirror.store.interface import IndexUnavailableError
from mirror.store.local.sqlite import (
    LARGEST,
    Bounds,
    IndexDamagedError,
    discard,
    inode_of,
    limit_log,
    opened,
    translated,
)
from mirror.threads import Threads, run_in

R = TypeVar("R")
_PAGE: Final = 200
_LAST: Final = "\U0010ffff"  # sorts behind all names
_CACHE_PAGES: Final = 512  # of 4 KiB

_log = logging.getLogger(__name__)


class KeyValueStore:
    """Records by name.  Bounded: the records with the oldest write go first."""

    def __init__(self, directory: Path, bounds: Bounds = LARGEST) -> None:
        self._directory = directory
        self._bounds = bounds
        self._cache: Any = None  # a diskcache.Cache, None while it is closed
        self._inode: tuple[int, int] | None = None
        self._thread = Threads(1, directory.name)

    async def heal(self) -> None:
        """Open the database again if it is closed, damaged or removed."""
        await run_in(self._thread, self._heal)

    def _heal(self) -> None:
        in_place = self._inode is not None and self._inode == inode_of(self._directory)
        if self._cache is not None and in_place:
            return
        self._close()
        with contextlib.suppress(OSError, IndexUnavailableError):  # Objects.health reports it
            try:
                self._open()
            except IndexDamagedError as error:
                _log.error("%s: %s; creating a new, empty database", self._directory, error)
                discard(self._directory)
                self._open()

    def _open(self) -> None:
        with translated():
            cache = opened(
                self._directory,
                self._bounds.log_bytes,
                eviction_policy="least-recently-stored",
                size_limit=self._bounds.record_bytes,
                cull_limit=0,
                statistics=0,
                # diskcache's defaults, 32 MiB and 64 MiB for each of three databases, would be
                # most of the memory of a worker.
                sqlite_cache_size=_CACHE_PAGES,
                sqlite_mmap_size=0,
            )
            _trim(cache)
        self._cache, self._inode = cache, inode_of(self._directory)

    async def limit(self, bounds: Bounds) -> None:
        """Apply new bounds and drop the oldest records at once.

        If the database is unavailable, the bounds apply once it is available.
        """
        self._bounds = bounds

        def limit(cache: Any) -> None:
            cache.reset("size_limit", bounds.record_bytes)
            _trim(cache)
            limit_log(cache, bounds.log_bytes)

        await self._call(limit)

    async def close(self) -> None:
        await run_in(self._thread, self._close)
        self._thread.shutdown()

    def _close(self) -> None:
        cache, self._cache = self._cache, None
        if cache is not None:
            cache.close()

    async def lookup(self, name: str) -> bytes | None:
        """Return the record, or None if it does not exist or the database cannot be read."""
        with contextlib.suppress(IndexUnavailableError):
            record: bytes | None = await self._call(lambda cache: cache.get(name))
            return record
        return None

    async def pages(self, prefix: str = "") -> AsyncGenerator[list[tuple[str, bytes]], None]:
        """Yield the names that begin with ``prefix``, and their records, one page at a time."""
        reached = 0
        while rows := await self._after(reached, prefix):
            yield [(name, bytes(record)) for _, name, record in rows]
            reached = rows[-1][0]

    async def _after(self, row: int, prefix: str) -> list[tuple[int, str, bytes]]:
        # With a plus, SQLite does not look for a column in its index.
        places = "+rowid > ? AND key >= ? AND key < ?" if prefix else "rowid > ?"
        statement = (
            f"SELECT rowid, key, value FROM Cache WHERE {places} AND raw = 1 AND mode = 1 "  # noqa: S608  # of constants
            "ORDER BY rowid LIMIT ?"
        )
        names = (prefix, f"{prefix}{_LAST}") if prefix else ()
        return await self._call(lambda cache: list(cache._sql(statement, (row, *names, _PAGE))))

    async def put(self, name: str, record: bytes) -> None:
        """Write a record; replace a record of the same name."""

        def put(cache: Any) -> None:
            cache.set(name, record)
            _trim(cache)

        await self._call(put)

    async def remove(self, name: str) -> None:
        await self._call(lambda cache: cache.delete(name))

    async def _call(self, function: Callable[[Any], R]) -> R:
        return await run_in(self._thread, lambda: self._guarded(function))

    def _guarded(self, function: Callable[[Any], R]) -> R:
        if self._cache is None:
            raise IndexUnavailableError(f"the index in {self._directory} is not open")
        try:
            with translated():
                return function(self._cache)
        except IndexDamagedError:
            self._close()
            raise


def _trim(cache: Any) -> None:
    """Drop the oldest records; diskcache itself drops ten per write, regardless of size."""
    if cache.volume() > cache.size_limit:
        cache.cull()
