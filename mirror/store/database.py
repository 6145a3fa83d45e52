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
_MODE_RAW: Final = 1
_MODE_BINARY: Final = 2


class IndexUnavailableError(Exception):
    """The index cannot be read or written: locked for too long, or the disk is full or failing."""


class IndexDamagedError(IndexUnavailableError):
    """The database is no database any more; what it said has to be found out anew."""


@dataclass(frozen=True, slots=True)
class Adoption:
    """The value handed through ``Cache.set`` to :meth:`_ObjectDisk.store`.

    ``pending`` is the file's other name, None where it is in its place already; ``modified`` its
    modification time (ns since 1970) when its bytes were verified, 0 where nobody has yet.
    """

    pending: Path | None
    name: str
    size: int
    media_type: str
    modified: int


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
        return value.size, _MODE_BINARY, value.name, described(value)

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


def opened(directory: Path, **settings: object) -> Any:
    """Open or create a database (a ``diskcache.Cache``) in a directory.

    Raises:
        diskcache.Timeout, sqlite3.Error: it cannot be opened or written; see :func:`translated`.
    """
    cache = diskcache.Cache(
        str(directory), timeout=_BUSY_SECONDS, disk=_ObjectDisk, tag_index=0, **settings
    )
    cache.set("probe", b"")  # SQLite built with DQS=0 passes everything up to the first insert
    cache.delete("probe")
    return cache


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
    for suffix in ("", "-wal", "-shm"):
        (directory / f"{DATABASE}{suffix}").unlink(missing_ok=True)
