"""The databases of the cache.  No other module imports diskcache.

diskcache stores the rows (SQLite) and removes files.  Its eviction is off for objects (it removes
ten rows regardless of their size), its LRU ``get`` is not used (it is a write transaction), and
its pickling is disabled (CVE-2025-69872).
"""

import contextlib
import json
import os
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import diskcache

from mirror.store.interface import IndexUnavailableError

DATABASE: Final = diskcache.core.DBNAME
_BUSY_SECONDS: Final = 5.0  # wait for another process's write lock; diskcache's default is 60 s
_PAGE_BYTES: Final = 4096
_MOST_RECORD_BYTES: Final = 256 * 1024 * 1024
_LEAST_RECORD_BYTES: Final = 128 * 1024  # about a hundred tags
_RECORD_SHARE: Final = 64
_MOST_LOG_BYTES: Final = 1000 * _PAGE_BYTES  # SQLite's default
_LEAST_LOG_BYTES: Final = 16 * _PAGE_BYTES
_LOG_SHARE: Final = 128
_MODE_RAW: Final = 1
_MODE_BINARY: Final = 2


@dataclass(frozen=True, slots=True)
class Bounds:
    """Size limits of the databases of a cache, in bytes.

    ``record_bytes`` limits each database of small records, ``log_bytes`` the write-ahead log
    (``-wal``) of every database.
    """

    record_bytes: int
    log_bytes: int

    @classmethod
    def of(cls, max_bytes: int) -> "Bounds":
        """Return the bounds for a cache of ``max_bytes``."""
        records = min(_MOST_RECORD_BYTES, max(_LEAST_RECORD_BYTES, max_bytes // _RECORD_SHARE))
        log = min(_MOST_LOG_BYTES, max(_LEAST_LOG_BYTES, max_bytes // _LOG_SHARE))
        return cls(records, log)


#: The bounds of a large cache.
LARGEST: Final = Bounds(_MOST_RECORD_BYTES, _MOST_LOG_BYTES)


class IndexDamagedError(IndexUnavailableError):
    """The database file is corrupt; its content must be rebuilt."""


@dataclass(frozen=True, slots=True)
class Adoption:
    """The value that ``Cache.set`` passes to :meth:`_ObjectDisk.store`.

    ``pending`` is the file's link in ``pending/``, None if the file is in its final place.
    ``modified`` is the modification time (ns since 1970) when the bytes were verified, 0 if they
    have not been verified yet.  ``taken`` is the space on the disk, in bytes.
    """

    pending: Path | None
    name: str
    size: int
    media_type: str
    modified: int
    taken: int = 0


class _ObjectDisk(diskcache.Disk):  # type: ignore[misc]  # diskcache ships no types
    """Adopts files that are already written, instead of copying values."""

    def put(self, key: object) -> tuple[str, bool]:
        if not isinstance(key, str):
            raise TypeError("keys are str: anything else would be pickled")
        return key, True

    def get(self, key: object, raw: bool) -> str:
        if not raw or not isinstance(key, str):
            raise TypeError("keys are str: anything else would be unpickled")
        return key

    def store(
        self, value: object, read: bool, key: object = None
    ) -> tuple[int, int, str | None, object]:
        if isinstance(value, bytes):
            return 0, _MODE_RAW, None, sqlite3.Binary(value)
        if not isinstance(value, Adoption):
            raise TypeError("values are bytes or adoptions: anything else would be pickled")
        if value.pending is not None:
            path = Path(self._directory, value.name)
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with contextlib.suppress(FileExistsError):  # a repair may repeat this step
                os.link(value.pending, path)
        return value.taken, _MODE_BINARY, value.name, described(value)

    def fetch(self, mode: int, filename: str | None, value: Any, read: bool) -> object:
        if mode == _MODE_RAW:
            return bytes(value)
        if mode != _MODE_BINARY or filename is None:
            raise TypeError(f"a row of mode {mode} is not ours: it would be unpickled")
        return Path(self._directory, filename), json.loads(value)

    def remove(self, file_path: str) -> None:
        # diskcache also calls removedirs(), which races with an adoption into the same directory.
        with contextlib.suppress(FileNotFoundError):
            os.remove(Path(self._directory, file_path))


def described(value: Adoption) -> str:
    """Return the JSON description of a file, as stored in its row."""
    return json.dumps(
        {"size": value.size, "mediaType": value.media_type, "modified": value.modified}
    )


def opened(directory: Path, log_bytes: int, **settings: object) -> Any:
    """Open or create a database (a ``diskcache.Cache``) in a directory.

    Its write-ahead log (``-wal``) is checkpointed at about ``log_bytes`` and then truncated to
    that size.

    Raises:
        diskcache.Timeout, sqlite3.Error: the database cannot be opened or written; see
            :func:`translated`.
    """
    cache = diskcache.Cache(
        str(directory),
        timeout=_BUSY_SECONDS,
        disk=_ObjectDisk,
        tag_index=0,
        sqlite_wal_autocheckpoint=log_bytes // _PAGE_BYTES,
        sqlite_journal_size_limit=log_bytes,
        **settings,
    )
    cache.set("probe", b"")  # a SQLite built with DQS=0 fails only at the first insert
    cache.delete("probe")
    return cache


def limit_log(cache: Any, log_bytes: int) -> None:
    """Limit the write-ahead log of an open database to about ``log_bytes``.

    Raises:
        diskcache.Timeout, sqlite3.Error: see :func:`translated`.
    """
    cache.reset("sqlite_wal_autocheckpoint", log_bytes // _PAGE_BYTES)
    cache.reset("sqlite_journal_size_limit", log_bytes)
    cache._sql("PRAGMA wal_checkpoint(TRUNCATE)")


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """Translate errors of SQLite and diskcache.

    Raises:
        IndexDamagedError: the database is damaged.
        IndexUnavailableError: any other error.
    """
    try:
        yield
    except (diskcache.Timeout, sqlite3.Error) as error:
        reason = str(error) or "another process holds it"
        # sqlite3 has no separate class for "malformed" and "not a database".
        damaged = type(error) is sqlite3.DatabaseError
        kind = IndexDamagedError if damaged else IndexUnavailableError
        raise kind(f"the cache index cannot be used: {reason}") from error


def inode_of(directory: Path) -> tuple[int, int] | None:
    """Return device and inode of the database file in a directory; None if it is missing."""
    try:
        there = (directory / DATABASE).stat()
    except OSError:
        return None
    return there.st_dev, there.st_ino


def discard(directory: Path) -> None:
    """Remove a damaged database.

    Raises:
        OSError: a file cannot be removed.
    """
    for file in files_of(directory):
        file.unlink(missing_ok=True)


def files_of(directory: Path) -> Iterator[Path]:
    """Return the files of the database in a directory: database, log, shared memory."""
    return (directory / f"{DATABASE}{suffix}" for suffix in ("", "-wal", "-shm"))
