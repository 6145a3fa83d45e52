"""The databases of the cache.  The only module that knows diskcache.

diskcache keeps the rows (SQLite) and removes files; its own eviction is off for objects (it
removes ten rows whatever their size), its LRU ``get`` is not used (it is a write transaction),
and its pickling is closed off (CVE-2025-69872).
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

DATABASE: Final = diskcache.core.DBNAME
_BUSY_SECONDS: Final = 5.0  # another process holds the write lock; diskcache's own 60 s is a hang
_PAGE_BYTES: Final = 4096
_MOST_RECORD_BYTES: Final = 256 * 1024 * 1024
_LEAST_RECORD_BYTES: Final = 128 * 1024  # some hundred tags
_RECORD_SHARE: Final = 64
_MOST_LOG_BYTES: Final = 1000 * _PAGE_BYTES  # SQLite's own default
_LEAST_LOG_BYTES: Final = 16 * _PAGE_BYTES
_LOG_SHARE: Final = 128
_MODE_RAW: Final = 1
_MODE_BINARY: Final = 2


@dataclass(frozen=True, slots=True)
class Bounds:
    """How large the databases of a cache may become, in bytes.

    ``record_bytes`` is for each database of small records, ``log_bytes`` for the log of changes
    (``-wal``) of every database.
    """

    record_bytes: int
    log_bytes: int

    @classmethod
    def of(cls, max_bytes: int) -> "Bounds":
        """The bounds in a cache of ``max_bytes``."""
        records = min(_MOST_RECORD_BYTES, max(_LEAST_RECORD_BYTES, max_bytes // _RECORD_SHARE))
        log = min(_MOST_LOG_BYTES, max(_LEAST_LOG_BYTES, max_bytes // _LOG_SHARE))
        return cls(records, log)


#: Of a large cache.
LARGEST: Final = Bounds(_MOST_RECORD_BYTES, _MOST_LOG_BYTES)


class IndexUnavailableError(Exception):
    """The index cannot be read or written: locked for too long, or the disk is full or failing."""


class IndexDamagedError(IndexUnavailableError):
    """The database is no database any more; what it said has to be found out anew."""


@dataclass(frozen=True, slots=True)
class Adoption:
    """The value handed through ``Cache.set`` to :meth:`_ObjectDisk.store`.

    ``pending`` is the file's other name, None where it is in its place already; ``modified`` its
    modification time (ns since 1970) when its bytes were verified, 0 where nobody has yet;
    ``taken`` what it takes on the disk, in bytes.
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
            with contextlib.suppress(FileExistsError):  # a repair finds the step already done
                os.link(value.pending, path)
        return value.taken, _MODE_BINARY, value.name, described(value)

    def fetch(self, mode: int, filename: str | None, value: Any, read: bool) -> object:
        if mode == _MODE_RAW:
            return bytes(value)
        if mode != _MODE_BINARY or filename is None:
            raise TypeError(f"a row of mode {mode} is not ours: it would be unpickled")
        return Path(self._directory, filename), json.loads(value)

    def remove(self, file_path: str) -> None:
        # Without diskcache's removedirs(): it races with an adoption into the same directory.
        with contextlib.suppress(FileNotFoundError):
            os.remove(Path(self._directory, file_path))


def described(value: Adoption) -> str:
    """What a row says of its file."""
    return json.dumps(
        {"size": value.size, "mediaType": value.media_type, "modified": value.modified}
    )


def opened(directory: Path, log_bytes: int, **settings: object) -> Any:
    """Open or create a database (a ``diskcache.Cache``) in a directory.

    Its log of changes (``-wal``) is written back at some ``log_bytes``, and no longer afterwards.

    Raises:
        diskcache.Timeout, sqlite3.Error: it cannot be opened or written; see :func:`translated`.
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
    cache.set("probe", b"")  # SQLite built with DQS=0 passes everything up to the first insert
    cache.delete("probe")
    return cache


def limit_log(cache: Any, log_bytes: int) -> None:
    """Keep the log of changes of an open database to some ``log_bytes`` from now on.

    Raises:
        diskcache.Timeout, sqlite3.Error: see :func:`translated`.
    """
    cache.reset("sqlite_wal_autocheckpoint", log_bytes // _PAGE_BYTES)
    cache.reset("sqlite_journal_size_limit", log_bytes)
    cache._sql("PRAGMA wal_checkpoint(TRUNCATE)")


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """What goes wrong in SQLite and diskcache, as an error of ours.

    Raises:
        IndexDamagedError: the database is damaged.
        IndexUnavailableError: it went wrong in another way.
    """
    try:
        yield
    except (diskcache.Timeout, sqlite3.Error) as error:
        reason = str(error) or "another process holds it"
        # SQLite has no class of its own for "malformed" and "not a database".
        damaged = type(error) is sqlite3.DatabaseError
        kind = IndexDamagedError if damaged else IndexUnavailableError
        raise kind(f"the cache index cannot be used: {reason}") from error


def inode_of(directory: Path) -> tuple[int, int] | None:
    """Which file the database in a directory is, None where there is none."""
    try:
        there = (directory / DATABASE).stat()
    except OSError:
        return None
    return there.st_dev, there.st_ino


def discard(directory: Path) -> None:
    """Remove a damaged database.

    Raises:
        OSError: it cannot be removed.
    """
    for file in files_of(directory):
        file.unlink(missing_ok=True)


def files_of(directory: Path) -> Iterator[Path]:
    """The files of the database in a directory: itself, its log, what its users share."""
    return (directory / f"{DATABASE}{suffix}" for suffix in ("", "-wal", "-shm"))
