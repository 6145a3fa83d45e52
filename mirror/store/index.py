"""The index: which objects there are, how large, and when each was last used.

The only module that knows diskcache.  diskcache keeps the rows (SQLite) and removes files;
its own eviction is off (it removes ten rows whatever their size), its LRU ``get`` is not used
(it is a write transaction), and its pickling is closed off (CVE-2025-69872).

A file and its row cannot change in one step, so the intent is noted first: a hard link in
``pending/`` named after the act.  After a crash :meth:`ObjectIndex.repair` finishes what those
links say, in time proportional to what was under way and not to what is stored.

Not safe for several threads: one thread owns an index (``store.objects`` sees to that).
Several processes may share one, on a local disk.
"""

import contextlib
import json
import os
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import diskcache

from mirror.store.layout import Layout, ObjectKey

_BUSY_SECONDS: Final = 5.0  # another process holds the write lock; diskcache's own 60 s is a hang
_RECORDS_MAX_BYTES: Final = 256 * 1024 * 1024
_MODE_RAW: Final = 1
_MODE_BINARY: Final = 2
_ADOPT: Final = "adopt"
_EVICT: Final = "evict"


class IndexUnavailableError(Exception):
    """The index cannot be read or written: locked for too long, damaged, or the disk is full."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One stored object; ``size`` in bytes, ``media_type`` empty for blobs."""

    key: ObjectKey
    path: Path
    size: int
    media_type: str = ""


@dataclass(frozen=True, slots=True)
class _Adoption:
    """The value handed through ``Cache.set`` to :meth:`_ObjectDisk.store`."""

    pending: Path
    name: str
    size: int
    media_type: str


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
        if not isinstance(value, _Adoption):
            raise TypeError("values are bytes or adoptions: anything else would be pickled")
        path = Path(self._directory, value.name)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):  # a repair finds the step already done
            os.link(value.pending, path)
        described = json.dumps({"size": value.size, "mediaType": value.media_type})
        return value.size, _MODE_BINARY, value.name, described

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


def _open(directory: Path, **settings: object) -> diskcache.Cache:
    cache = diskcache.Cache(
        str(directory), timeout=_BUSY_SECONDS, disk=_ObjectDisk, tag_index=0, **settings
    )
    cache.set("probe", b"")  # SQLite built with DQS=0 passes everything up to the first insert
    cache.delete("probe")
    return cache


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (diskcache.Timeout, sqlite3.Error) as error:
        reason = str(error) or "another process holds it"
        raise IndexUnavailableError(f"the cache index cannot be used: {reason}") from error


class ObjectIndex:
    """Rows of objects by key, in order of last use."""

    def __init__(self, layout: Layout) -> None:
        """Open or create the index.

        Raises:
            IndexUnavailableError: the database cannot be opened or written.
        """
        self._layout = layout
        with _translated():
            self._cache = _open(
                layout.root, eviction_policy="least-recently-used", cull_limit=0, statistics=0
            )
            # The policy above made the SQL index on access_time; from here on `get` must not
            # write.  Only this instance forgets the policy, the database keeps it.
            self._cache.reset("eviction_policy", "none", update=False)

    def lookup(self, key: ObjectKey) -> Entry | None:
        """The entry of a key, or None.  Reads only."""
        with _translated():
            found = self._cache.get(str(key))
        if found is None:
            return None
        path, described = cast("tuple[Path, dict[str, Any]]", found)
        return Entry(key, path, described["size"], described["mediaType"])

    def adopt(self, key: ObjectKey, staged: Path, size: int, media_type: str = "") -> Entry:
        """Take over a whole, verified, flushed file by rename; what the key had goes.

        Raises:
            OSError: the file cannot be moved.
            IndexUnavailableError: the row cannot be written; the file waits in ``pending/``.
        """
        name = key.new_name()
        pending = self._pending(_ADOPT, key, name)
        os.rename(staged, pending)
        self._insert(key, _Adoption(pending, name, size, media_type))
        return Entry(key, self._layout.root / name, size, media_type)

    def _insert(self, key: ObjectKey, adoption: _Adoption) -> None:
        with _translated():
            self._cache.set(str(key), adoption)
        adoption.pending.unlink()

    def remove(self, key: ObjectKey) -> int:
        """Drop an object, row and file; return the bytes it had (0: it was not there)."""
        entry = self.lookup(key)
        if entry is None:
            return 0
        pending = self._pending(_EVICT, key, entry.path.name)
        with contextlib.suppress(FileNotFoundError, FileExistsError):
            os.link(entry.path, pending)
        with _translated():
            self._cache.delete(str(key))
        pending.unlink(missing_ok=True)
        return entry.size

    def touch(self, used: Mapping[ObjectKey, float]) -> None:
        """Note when objects were last used (Unix seconds), in one transaction."""
        statement = "UPDATE Cache SET access_time = ? WHERE key = ? AND raw = 1"
        with _translated(), self._cache.transact():
            for key, when in used.items():
                self._cache._sql(statement, (when, str(key)))

    def oldest(self, limit: int) -> list[tuple[ObjectKey, float]]:
        """The least recently used objects and when that was (Unix seconds), oldest first."""
        statement = "SELECT key, access_time FROM Cache ORDER BY access_time LIMIT ?"
        with _translated():
            rows = self._cache._sql(statement, (limit,)).fetchall()
        return [(ObjectKey.parse(key), when) for key, when in rows]

    def total_bytes(self) -> int:
        """The sum of the sizes of all objects, in bytes; kept by triggers, so it is cheap."""
        with _translated():
            return int(self._cache.reset("size"))

    def count(self) -> int:
        """How many objects there are; kept by triggers, so it is cheap."""
        with _translated():
            return len(self._cache)

    def repair(self, media_type_of: Callable[[Path], str]) -> None:
        """Finish what a crash left in ``pending/``.

        Args:
            media_type_of: reads the media type out of a manifest's file.
        """
        for pending in sorted(self._layout.pending.iterdir()):
            act, key_text, suffix = _split_pending(pending.name)
            key = ObjectKey.parse(key_text)
            name = f"{Path(key.new_name()).parent}/{key.digest.hex}.{suffix}"
            entry = self.lookup(key)
            if entry is not None and entry.path == self._layout.root / name:
                pending.unlink()  # the row stands: adopted after all, or not yet evicted
            elif act == _ADOPT:
                media_type = "" if key.kind == "blobs" else media_type_of(pending)
                self._insert(key, _Adoption(pending, name, pending.stat().st_size, media_type))
            else:
                (self._layout.root / name).unlink(missing_ok=True)
                pending.unlink()

    def close(self) -> None:
        """Close the calling thread's connection, the only one there is."""
        self._cache.close()

    def _pending(self, act: str, key: ObjectKey, name: str) -> Path:
        return self._layout.pending / f"{act}.{key}.{name.rpartition('.')[2]}"


def _split_pending(name: str) -> tuple[str, str, str]:
    act, _, rest = name.partition(".")
    key_text, _, suffix = rest.rpartition(".")
    return act, key_text, suffix


class RecordIndex:
    """Small records by name (what a tag last meant), in a database of their own.

    Apart from the objects so that counting objects stays cheap, and so that losing one
    database does not lose the other.  Bounded: the records written longest ago go first.
    """

    def __init__(self, directory: Path) -> None:
        """Open or create the index.

        Raises:
            IndexUnavailableError: the database cannot be opened or written.
        """
        with _translated():
            self._cache = _open(
                directory,
                eviction_policy="least-recently-stored",
                size_limit=_RECORDS_MAX_BYTES,
                cull_limit=10,
                statistics=0,
            )

    def lookup(self, name: str) -> bytes | None:
        """The record of that name, or None."""
        with _translated():
            return cast("bytes | None", self._cache.get(name))

    def put(self, name: str, record: bytes) -> None:
        """Write a record over what was there."""
        with _translated():
            self._cache.set(name, record)

    def remove(self, name: str) -> None:
        """Drop a record; it need not be there."""
        with _translated():
            self._cache.delete(name)

    def close(self) -> None:
        """Close the calling thread's connection, the only one there is."""
        self._cache.close()
