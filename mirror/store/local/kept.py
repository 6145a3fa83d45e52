"""The kept objects: those that must not be evicted, including objects not stored yet.

A table in the index's database has the names of the kept objects.  The rows of stored objects have
a mark: ``access_count``, which diskcache does not use with the policy of the index.  Triggers mark
objects that any process adopts later, and maintain the sum of the sizes.  Making room therefore
costs the same with many kept objects as with none.

The table and the triggers are created when the first object is kept.  Runs on the index's thread.
All methods raise IndexUnavailableError if the index cannot be used.
"""

import json
import sqlite3
from collections.abc import Collection, Iterator
from typing import Any, Final

from mirror.store.local.layout import ObjectKey
from mirror.store.local.sqlite import translated

_SCHEMA: Final = """
CREATE TABLE Kept (name TEXT PRIMARY KEY, seen REAL NOT NULL) WITHOUT ROWID;
CREATE INDEX Kept_seen ON Kept (seen);
CREATE TABLE KeptBytes (total INTEGER NOT NULL);
INSERT INTO KeptBytes VALUES (0);
CREATE INDEX Cache_evictable ON Cache (access_time) WHERE access_count = 0;

CREATE TRIGGER kept_inserted AFTER INSERT ON Cache
WHEN EXISTS (SELECT 1 FROM Kept WHERE name = NEW.key)
BEGIN UPDATE Cache SET access_count = 1 WHERE rowid = NEW.rowid; END;

CREATE TRIGGER kept_changed AFTER UPDATE OF access_count, size ON Cache
WHEN OLD.access_count != 0 OR NEW.access_count != 0
BEGIN
    UPDATE KeptBytes
    SET total = total + NEW.access_count * NEW.size - OLD.access_count * OLD.size;
END;

CREATE TRIGGER kept_deleted AFTER DELETE ON Cache WHEN OLD.access_count != 0
BEGIN UPDATE KeptBytes SET total = total - OLD.size; END;
"""


class Kept:
    """The kept objects of one index."""

    def __init__(self, cache: Any) -> None:
        """``cache`` is the ``diskcache.Cache`` of the index."""
        self._cache = cache
        self._there = False

    def is_any(self) -> bool:
        """Return True if objects may be kept, that is, if the table exists."""
        if not self._there:
            statement = "SELECT 1 FROM sqlite_master WHERE name = 'Kept'"
            with translated():
                self._there = bool(self._cache._sql(statement).fetchall())
        return self._there

    def put(self, keys: Collection[ObjectKey], now: float) -> None:
        """Mark objects as kept at the time ``now`` (Unix seconds)."""
        names = json.dumps([str(key) for key in keys])
        with translated(), self._cache.transact():
            if not self.is_any():
                for statement in _statements(_SCHEMA):
                    self._cache._sql(statement)
            self._cache._sql(
                "INSERT OR REPLACE INTO Kept SELECT value, ? FROM json_each(?)", (now, names)
            )
            self._cache._sql(
                "UPDATE Cache SET access_count = 1 WHERE raw = 1 AND access_count = 0"
                " AND key IN (SELECT value FROM json_each(?))",
                (names,),
            )

    def release(self, before: float, limit: int) -> int:
        """Release up to ``limit`` objects whose mark is older than ``before`` (Unix seconds).

        Returns:
            the number of released objects.
        """
        if not self.is_any():
            return 0
        with translated(), self._cache.transact():
            statement = "SELECT name FROM Kept WHERE seen < ? LIMIT ?"
            names = [name for (name,) in self._cache._sql(statement, (before, limit)).fetchall()]
            told = (json.dumps(names),)
            self._cache._sql(
                "DELETE FROM Kept WHERE name IN (SELECT value FROM json_each(?))", told
            )
            self._cache._sql(
                "UPDATE Cache SET access_count = 0 WHERE raw = 1"
                " AND key IN (SELECT value FROM json_each(?))",
                told,
            )
        return len(names)

    def among(self, keys: Collection[ObjectKey]) -> set[ObjectKey]:
        if not self.is_any():
            return set()
        named = {str(key): key for key in keys}
        statement = "SELECT name FROM Kept WHERE name IN (SELECT value FROM json_each(?))"
        with translated():
            rows = self._cache._sql(statement, (json.dumps([*named]),)).fetchall()
        return {named[name] for (name,) in rows}

    def bytes(self) -> int:
        """Return the total disk space of the kept objects that are stored, in bytes."""
        if not self.is_any():
            return 0
        with translated():
            return int(self._cache._sql("SELECT total FROM KeptBytes").fetchone()[0])


def _statements(script: str) -> Iterator[str]:
    """Yield the statements of a script one by one; ``executescript`` would end a transaction."""
    text = ""
    for line in script.splitlines(keepends=True):
        text += line
        if sqlite3.complete_statement(text):
            yield text
            text = ""
