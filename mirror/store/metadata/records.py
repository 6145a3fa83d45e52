"""Small records by name, such as what a tag last meant, in a database of their own."""

from pathlib import Path
from typing import Final, cast

from mirror.store.local.sqlite import LARGEST, Bounds, inode_of, limit_log, opened, translated

_CACHE_PAGES: Final = 512  # of 4 KiB


class RecordIndex:
    """Records by name.

    Apart from the objects so that counting objects stays cheap, and so that losing one
    database does not lose the other.  Bounded: the records written longest ago go first.
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
                # diskcache's 32 MiB and 64 MiB for each of three databases would be most of what
                # a worker takes.
                sqlite_cache_size=_CACHE_PAGES,
                sqlite_mmap_size=0,
            )
            self._trim()
        self._directory = directory
        self._inode = inode_of(directory)

    def limit(self, bounds: Bounds) -> None:
        """Keep within other bounds from now on."""
        with translated():
            self._cache.reset("size_limit", bounds.record_bytes)
            self._trim()
            limit_log(self._cache, bounds.log_bytes)

    def in_place(self) -> bool:
        """Whether the open database is still the one in the directory."""
        return self._inode is not None and self._inode == inode_of(self._directory)

    def lookup(self, name: str) -> bytes | None:
        """The record of that name, or None."""
        with translated():
            return cast("bytes | None", self._cache.get(name))

    def after(self, row: int, limit: int) -> list[tuple[int, str, bytes]]:
        """Number, name and record of the rows after number ``row``, in the order of numbers."""
        statement = (
            "SELECT rowid, key, value FROM Cache WHERE rowid > ? AND raw = 1 AND mode = 1 "
            "ORDER BY rowid LIMIT ?"
        )
        with translated():
            rows = self._cache._sql(statement, (row, limit)).fetchall()
        return [(number, name, bytes(record)) for number, name, record in rows]

    def put(self, name: str, record: bytes) -> None:
        """Write a record over what was there."""
        with translated():
            self._cache.set(name, record)
            self._trim()

    def _trim(self) -> None:
        """Drop the oldest: diskcache by itself drops ten for each that is put, however small."""
        if self._cache.volume() > self._cache.size_limit:
            self._cache.cull()

    def remove(self, name: str) -> None:
        """Drop a record; it need not be there."""
        with translated():
            self._cache.delete(name)

    def close(self) -> None:
        """Close the calling thread's connection, the only one there is."""
        self._cache.close()
