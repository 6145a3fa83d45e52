"""An asynchronous key-value store for small records.  It recovers when its directory is lost.

One thread owns the database.  A damaged database is replaced with an empty one.  While the
database is unavailable, lookups return None and writes raise IndexUnavailableError.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Final, TypeVar

from mirror.store.interface import IndexUnavailableError
from mirror.store.local.sqlite import LARGEST, Bounds, IndexDamagedError, discard
from mirror.store.metadata.records import RecordIndex
from mirror.threads import Threads

R = TypeVar("R")
_PAGE: Final = 200

_log = logging.getLogger(__name__)


class KeyValueStore:
    """Records by name in a separate database."""

    def __init__(self, directory: Path, bounds: Bounds = LARGEST) -> None:
        self._directory = directory
        self._bounds = bounds
        self._index: RecordIndex | None = None
        self._thread = Threads(1, directory.name)

    async def heal(self) -> None:
        """Open the database again if it is closed, damaged or removed."""
        await self._visit(self._heal)

    def _heal(self) -> None:
        if self._index is not None and self._index.in_place():
            return
        self._close()
        with contextlib.suppress(OSError, IndexUnavailableError):  # Objects.alarm reports it
            try:
                self._index = RecordIndex(self._directory, self._bounds)
            except IndexDamagedError as error:
                _log.error("%s: %s; creating a new, empty database", self._directory, error)
                discard(self._directory)
                self._index = RecordIndex(self._directory, self._bounds)

    async def limit(self, bounds: Bounds) -> None:
        """Apply new bounds and drop the oldest records at once.

        Raises:
            IndexUnavailableError: the database cannot be written; the bounds apply once it can.
        """
        self._bounds = bounds
        await self._visit(lambda: self._opened.limit(bounds))

    async def close(self) -> None:
        """Close the database."""
        await self._visit(self._close)
        self._thread.shutdown()

    def _close(self) -> None:
        index, self._index = self._index, None
        if index is not None:
            with contextlib.suppress(IndexUnavailableError):
                index.close()

    async def lookup(self, name: str) -> bytes | None:
        """Return the record, or None if it does not exist or the database cannot be read."""
        with contextlib.suppress(IndexUnavailableError):
            return await self._visit(lambda: self._opened.lookup(name))
        return None

    async def pages(self) -> AsyncGenerator[list[tuple[str, bytes]], None]:
        """Yield all names and their records, one page at a time.

        Raises:
            IndexUnavailableError: the database cannot be read.
        """
        reached = 0
        while rows := await self._after(reached):
            yield [(name, record) for _, name, record in rows]
            reached = rows[-1][0]

    async def _after(self, row: int) -> list[tuple[int, str, bytes]]:
        return await self._visit(lambda: self._opened.after(row, _PAGE))

    async def put(self, name: str, record: bytes) -> None:
        """Write a record; replace a record of the same name.

        Raises:
            IndexUnavailableError: the record could not be written.
        """
        await self._visit(lambda: self._opened.put(name, record))

    async def remove(self, name: str) -> None:
        """Remove a record if it exists.

        Raises:
            IndexUnavailableError: the record could not be removed.
        """
        await self._visit(lambda: self._opened.remove(name))

    @property
    def _opened(self) -> RecordIndex:
        if self._index is None:
            raise IndexUnavailableError(f"the index in {self._directory} is not open")
        return self._index

    async def _visit(self, function: Callable[[], R]) -> R:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self._guarded, function)

    def _guarded(self, function: Callable[[], R]) -> R:
        try:
            return function()
        except IndexDamagedError:
            self._close()
            raise
