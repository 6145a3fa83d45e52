"""The database of small records by name, such as the last known manifest of a tag."""

from pathlib import Path
from typing import Final, cast

from mirror.store.local.sqlite import LARGEST, Bounds, inode_of, limit_log, opened, translated

_CACHE_PAGES: Final = 512  # of 4 KiB


class RecordIndex:
    """Records by name.

    Separate from the object index, so that counting objects stays cheap and the loss of one
    database does not affect the other.  Bounded: the records with the oldest write go first.
    """

    def __init__(self, directory: Path, bounds: Bounds = LARGEST) -> None:
        """Open or create the index.

        Raises:
            IndexUnavailableError: the database cannot be opened or written.
        """
        with translated():
            self._cache = opened(
                directory,
                bounds.log_bytes,
                eviction_policy="least-recently-stored",
                size_limit=bounds.record_bytes,
                cull_limit=0,
                statistics=0,
                # diskcache's defaults, 32 MiB and 64 MiB for each of three databases, would be
                # most of the memory of a worker.
                sqlite_cache_size=_CACHE_PAGES,
                sqlite_mmap_size=0,
            )
            self._trim()
        self._directory = directory
        self._inode = inode_of(directory)

    def limit(self, bounds: Bounds) -> None:
        """Apply new bounds."""
        with translated():
            self._cache.reset("size_limit", bounds.record_bytes)
            self._trim()
            limit_log(self._cache, bounds.log_bytes)

    def in_place(self) -> bool:
        """Return True if the open database is still the file in the directory."""
        return self._inode is not None and self._inode == inode_of(self._directory)

    def lookup(self, name: str) -> bytes | None:
        """Return the record, or None."""
        with translated():
            return cast("bytes | None", self._cache.get(name))

    def after(self, row: int, limit: int) -> list[tuple[int, str, bytes]]:
        """Return (row number, name, record) of up to ``limit`` rows after ``row``, in order."""
        statement = (
            "SELECT rowid, key, value FROM Cache WHERE rowid > ? AND raw = 1 AND mode = 1 "
            "ORDER BY rowid LIMIT ?"
        )
        with translated():
            rows = self._cache._sql(statement, (row, limit)).fetchall()
        return [(number, name, bytes(record)) for number, name, record in rows]

    def put(self, name: str, record: bytes) -> None:
        """Write a record; replace a record of the same name."""
        with translated():
            self._cache.set(name, record)
            self._trim()

    def _trim(self) -> None:
        """Drop the oldest records; diskcache itself drops ten per write, regardless of size."""
        if self._cache.volume() > self._cache.size_limit:
            self._cache.cull()

    def remove(self, name: str) -> None:
        """Remove a record if it exists."""
        with translated():
            self._cache.delete(name)

    def close(self) -> None:
        """Close the connection of the calling thread, which is the only connection."""
        self._cache.close()
