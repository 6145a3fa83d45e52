"""The index of the stored objects: their sizes and when each was last used.

A file and its row cannot change in one step.  Each change is therefore announced by a hard link
in ``pending/``, named after the action.  After a crash :meth:`ObjectIndex.repair` completes these
actions, in time proportional to the number of links and not to the number of objects.

Not thread-safe: one thread owns an index (see ``store.local.objects``).  Several processes may
share one index on a local disk.  All methods raise IndexUnavailableError if the database cannot be
used.
"""

import contextlib
import json
import math
import os
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Final, cast

from mirror.oci.manifest import NotAManifest, identify
from mirror.store.local.disk_usage import block_bytes, in_blocks
from mirror.store.local.entry import Held, ObjectEntry, Row
from mirror.store.local.kept import Kept
from mirror.store.local.layout import BLOBS, PRIVATE_BLOBS, Layout, ObjectKey
from mirror.store.local.sqlite import (
    LARGEST,
    Adoption,
    Bounds,
    described,
    inode_of,
    limit_log,
    opened,
    translated,
)

_TOUCHED: Final = 200
_ADOPT: Final = "adopt"
_EVICT: Final = "evict"


class ObjectIndex:
    """The rows of the objects by key, in order of last use."""

    def __init__(
        self,
        layout: Layout,
        removed: Callable[[ObjectKey], None] = lambda _: None,
        bounds: Bounds = LARGEST,
    ) -> None:
        """Open or create the index; ``removed`` is called for every object that is removed.

        Raises:
            OSError: the file system cannot be queried.
            IndexUnavailableError: the database cannot be opened or written.
        """
        self._layout = layout
        self._removed = removed
        with translated():
            self._cache = opened(
                layout.root,
                bounds.log_bytes,
                eviction_policy="least-recently-used",
                cull_limit=0,
                statistics=0,
            )
            # The policy above created the SQL index on access_time; from now on `get` must not
            # write.  The reset affects this instance only, the database keeps the policy.
            self._cache.reset("eviction_policy", "none", update=False)
        self.kept = Kept(self._cache)
        self._block = block_bytes(layout.root)
        self._count_blocks()
        self._inode = inode_of(layout.root)

    def _count_blocks(self) -> None:
        """Convert the sizes of the rows to whole blocks; earlier versions wrote bytes."""
        with translated():
            if self._cache._sql("PRAGMA user_version").fetchone()[0] == self._block:
                return
            with self._cache.transact():
                self._cache._sql(
                    "UPDATE Cache SET size = (json_extract(value, '$.size') + ?1 - 1) / ?1 * ?1"
                    " WHERE filename IS NOT NULL",
                    (self._block,),
                )
            self._cache._sql(f"PRAGMA user_version = {self._block}")

    def limit(self, bounds: Bounds) -> None:
        """Apply new bounds to the write-ahead log."""
        with translated():
            limit_log(self._cache, bounds.log_bytes)

    def in_place(self) -> bool:
        """Return True if the open database is still the file in the cache directory."""
        return self._inode is not None and self._inode == inode_of(self._layout.root)

    def lookup(self, key: ObjectKey) -> ObjectEntry | None:
        """Return the entry of a key, or None.  Read-only."""
        with translated():
            found = self._cache.get(str(key))
        if found is None:
            return None
        path, told = cast("tuple[Path, dict[str, Any]]", found)
        modified = told.get("modified", 0)  # version 0.1 did not write it
        return ObjectEntry(key, path, told["size"], told["mediaType"], modified)

    def adopt(
        self, key: ObjectKey, staged: Path, size: int, media_type: str = "", origin: str = ""
    ) -> ObjectEntry:
        """Move a complete, verified, flushed file into the store; replace the key's object.

        A new public object also replaces the private object of the same digest.  A private blob
        that is public meanwhile is dropped: the public one serves its repositories too.

        Raises:
            OSError: the file cannot be moved.
            IndexUnavailableError: the row cannot be written; the file stays in ``pending/``.
        """
        public = self.lookup(ObjectKey(BLOBS, key.digest)) if key.kind == PRIVATE_BLOBS else None
        if public is not None:
            staged.unlink()
            return public
        # diskcache itself would remove the former file after its row, without a link in pending/.
        self.remove(key)
        if key.private_twin is not None:
            self.remove(key.private_twin)
        name = key.new_name(origin)
        pending = self._pending(_ADOPT, key, name)
        os.rename(staged, pending)
        modified = pending.stat().st_mtime_ns
        self._insert(key, Adoption(pending, name, size, media_type, modified))
        return ObjectEntry(key, self._layout.root / name, size, media_type, modified)

    def _insert(self, key: ObjectKey, adoption: Adoption) -> None:
        adoption = replace(adoption, taken=in_blocks(adoption.size, self._block))
        with translated():
            self._cache.set(str(key), adoption)
        if adoption.pending is not None:
            adoption.pending.unlink()

    def include(self, names: Iterable[str]) -> int:
        """Insert rows for files whose rows were lost; remove files that another file replaced.

        ``names`` are relative to the root; returns the number of new rows.
        """
        with translated(), self._cache.transact():
            return sum(self._included(name) for name in names)

    def _included(self, name: str) -> bool:
        path = self._layout.root / name
        try:
            key, there = ObjectKey.of_name(name), path.stat()
        except (ValueError, FileNotFoundError):
            return False
        if there.st_nlink > 1:  # a second link in pending/: another process is working on the file
            return False
        entry = self.lookup(key)
        if entry is not None:
            if entry.path != path:
                path.unlink(missing_ok=True)
            return False
        media_type = _media_type_of(path) if key.is_manifest else ""
        self._insert(key, Adoption(None, name, there.st_size, media_type, 0))
        self.touch({key: there.st_mtime})
        return True

    def vouch(self, entry: ObjectEntry, modified: int) -> None:
        """Record that an object was verified at the modification time ``modified`` (ns)."""
        name = str(entry.path.relative_to(self._layout.root))
        text = described(Adoption(None, name, entry.size, entry.media_type, modified))
        statement = "UPDATE Cache SET value = ? WHERE key = ? AND filename = ?"
        with translated():
            self._cache._sql(statement, (text, str(entry.key), name))

    def rows_after(self, row: int, limit: int) -> list[Row]:
        """Return up to ``limit`` rows after number ``row``, in the order of insertion."""
        statement = (
            "SELECT rowid, key, json_extract(value, '$.size'), size FROM Cache "
            "WHERE rowid > ? ORDER BY rowid LIMIT ?"
        )
        with translated():
            rows = self._cache._sql(statement, (row, limit)).fetchall()
        return [Row(number, ObjectKey.parse(key), *sizes) for number, key, *sizes in rows]

    def held(self, keys: Collection[ObjectKey]) -> dict[ObjectKey, Held]:
        statement = (
            "SELECT key, filename, json_extract(value, '$.size'), access_time, value FROM Cache "
            "WHERE raw = 1 AND key IN (SELECT value FROM json_each(?))"
        )
        named, root = {str(key): key for key in keys}, self._layout.root
        with translated():
            rows = self._cache._sql(statement, (json.dumps([*named]),)).fetchall()
        return {named[key]: Held(root, *rest) for key, *rest in rows}

    def keys_after(self, kind: str, name: str, limit: int) -> list[ObjectKey]:
        """Return up to ``limit`` objects of a kind whose key, as text, sorts after ``name``."""
        statement = "SELECT key FROM Cache WHERE key > ? AND key < ? ORDER BY key LIMIT ?"
        start, end = max(name, f"{kind}."), f"{kind}/"  # "/" is the character after "."
        with translated():
            rows = self._cache._sql(statement, (start, end, limit)).fetchall()
        return [ObjectKey.parse(key) for (key,) in rows]

    def remove(self, key: ObjectKey) -> int:
        """Remove an object, row and file; return its size in bytes, 0 if it is not stored."""
        entry = self.lookup(key)
        if entry is None:
            return 0
        pending = self._pending(_EVICT, key, entry.path.name)
        with contextlib.suppress(FileNotFoundError, FileExistsError):
            os.link(entry.path, pending)
        with translated():
            self._cache.delete(str(key))
        pending.unlink(missing_ok=True)
        self._removed(key)
        return entry.size

    def unlink(self, key: ObjectKey) -> None:
        """Remove the file of an object but not its row; the next lookup is a miss."""
        entry = self.lookup(key)
        if entry is not None:
            entry.path.unlink(missing_ok=True)
            self._removed(key)

    def touch(self, used: Mapping[ObjectKey, float]) -> None:
        """Record when objects were last used (Unix seconds), _TOUCHED per transaction."""
        statement = "UPDATE Cache SET access_time = ? WHERE key = ? AND raw = 1"
        noted = iter(used.items())
        while some := list(islice(noted, _TOUCHED)):  # batches keep the write-ahead log bounded
            with translated(), self._cache.transact():
                for key, when in some:
                    self._cache._sql(statement, (when, str(key)))

    def oldest(self, limit: int) -> list[tuple[ObjectKey, float]]:
        """Return the least recently used evictable objects with time of use (Unix seconds)."""
        statement = (
            "SELECT key, access_time FROM Cache WHERE access_count = 0 ORDER BY access_time LIMIT ?"
        )
        with translated():
            rows = self._cache._sql(statement, (limit,)).fetchall()
        return [(ObjectKey.parse(key), when) for key, when in rows]

    def used_after(self, time: float, limit: int) -> list[ObjectKey]:
        """Return up to ``limit`` objects used after ``time`` (Unix seconds), the latest first."""
        statement = "SELECT key FROM Cache WHERE access_time > ? ORDER BY access_time DESC LIMIT ?"
        with translated():
            rows = self._cache._sql(statement, (time, limit)).fetchall()
        return [ObjectKey.parse(key) for (key,) in rows]

    def total_bytes(self) -> int:
        """Return the disk space of all objects, in whole blocks.  Cheap: triggers maintain it."""
        with translated():
            return int(self._cache.reset("size"))

    def count(self) -> int:
        """Return the number of objects.  Cheap: triggers maintain it."""
        with translated():
            return len(self._cache)

    def repair(self, before: float = math.inf) -> None:
        """Complete the actions that a crash left in ``pending/``.

        Links made after ``before`` (Unix seconds) are skipped: another process may use them.
        """
        for pending in sorted(self._layout.pending.iterdir()):
            with contextlib.suppress(FileNotFoundError):  # another process completed it
                if pending.stat().st_ctime < before:
                    self._finish(pending)

    def _finish(self, pending: Path) -> None:
        act, _, rest = pending.name.partition(".")
        key_text, _, suffix = rest.rpartition(".")
        key = ObjectKey.parse(key_text)
        name = f"{Path(key.new_name()).parent}/{key.digest.hex}.{suffix}"
        entry = self.lookup(key)
        if entry is not None and entry.path == self._layout.root / name:
            pending.unlink()  # the row exists: already adopted, or not yet evicted
        elif act == _ADOPT:
            media_type = _media_type_of(pending) if key.is_manifest else ""
            there = pending.stat()
            adoption = Adoption(pending, name, there.st_size, media_type, there.st_mtime_ns)
            self._insert(key, adoption)
        else:
            (self._layout.root / name).unlink(missing_ok=True)
            pending.unlink()

    def close(self) -> None:
        """Close the connection of the calling thread, which is the only connection."""
        self._cache.close()

    def _pending(self, act: str, key: ObjectKey, name: str) -> Path:
        return self._layout.pending / f"{act}.{key}.{name.rpartition('.')[2]}"


def _media_type_of(manifest: Path) -> str:
    """Return the media type in a manifest's file; empty if the file is not a manifest."""
    try:
        return identify(manifest.read_bytes(), "")
    except NotAManifest:
        return ""
