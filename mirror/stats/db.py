"""The database of the ledger (SQLite).  Synchronous: whoever opens it has one thread for it.

Every process that uses the cache directory writes into the same one, a short transaction at a
time.  It is bounded: figures by day for 90 days, some 500 pulls, some 10,000 images.  SQLite of
2018 (3.24) will do: Python has whatever the system has.
"""

import os
import secrets
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from mirror.stats.buffer import StatsBuffer
from mirror.stats.report import Filling
from mirror.stats.sessions import SessionWriter

DATABASE: Final = "ledger.db"

_VERSION: Final = 1
_BUSY_SECONDS: Final = 5.0  # another process writes
_MOST_LOG_BYTES: Final = 1024 * 1024
_DAYS: Final = 90
_PULLS: Final = 500
_IMAGES: Final = 10_000
#: What a process that lives says again every second; a busy one may be late.
FILL_SECONDS: Final = 5.0

_SCHEMA: Final = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE figures (
    day TEXT, upstream TEXT, name TEXT, value INTEGER NOT NULL,
    PRIMARY KEY (day, upstream, name)
) WITHOUT ROWID;
CREATE TABLE upstreams (
    name TEXT PRIMARY KEY, code TEXT NOT NULL DEFAULT '', answered_at REAL,
    allowed REAL, remaining REAL
) WITHOUT ROWID;
CREATE TABLE pulls (
    id INTEGER PRIMARY KEY, visitor BLOB NOT NULL, upstream TEXT NOT NULL,
    repository TEXT NOT NULL, reference TEXT NOT NULL, means TEXT NOT NULL DEFAULT '',
    client TEXT NOT NULL, first REAL NOT NULL, last REAL NOT NULL,
    heads INTEGER NOT NULL DEFAULT 0, gets INTEGER NOT NULL DEFAULT 0,
    fetched INTEGER NOT NULL DEFAULT 0, result TEXT NOT NULL DEFAULT '',
    sent_bytes INTEGER NOT NULL DEFAULT 0, missed_bytes INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX pulls_of_visitor ON pulls (visitor, upstream, repository);
CREATE INDEX pulls_by_age ON pulls (fetched, last);
CREATE TABLE images (
    upstream TEXT, repository TEXT, reference TEXT, pulls INTEGER NOT NULL, last REAL NOT NULL,
    digest TEXT NOT NULL DEFAULT '', size INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (upstream, repository, reference)
) WITHOUT ROWID;
CREATE INDEX images_by_age ON images (last);
CREATE INDEX images_by_pulls ON images (pulls);
CREATE INDEX images_by_size ON images (size);
CREATE TABLE fills (
    process TEXT, digest TEXT, upstream TEXT NOT NULL, repository TEXT NOT NULL,
    length INTEGER NOT NULL, total INTEGER, rate REAL NOT NULL, waiting INTEGER NOT NULL,
    seen REAL NOT NULL, PRIMARY KEY (process, digest)
) WITHOUT ROWID;
"""


class StatsDatabase:
    """The opened database of one directory."""

    def __init__(self, directory: Path, now: float) -> None:
        """Open it, or begin it at ``now`` (Unix seconds); one that is damaged is begun anew.

        Raises:
            OSError, sqlite3.Error: it cannot be opened or written.
        """
        self.path = directory / DATABASE
        directory.mkdir(mode=0o700, exist_ok=True)
        try:
            self._connection = _opened(self.path, now)
        except sqlite3.DatabaseError as error:
            if not is_damage(error):
                raise
            discard(directory)
            self._connection = _opened(self.path, now)
        self._inode = _inode_of(self.path)
        key = self._connection.execute("SELECT value FROM meta WHERE name = 'key'").fetchone()[0]
        self._visits = SessionWriter(self._connection, key)

    @property
    def connection(self) -> sqlite3.Connection:
        """For reading."""
        return self._connection

    def in_place(self) -> bool:
        """Whether the open database is still the one in the directory."""
        return self._inode is not None and self._inode == _inode_of(self.path)

    def write(self, batch: StatsBuffer, now: float) -> None:
        """Write what happened until ``now`` (Unix seconds), and drop what is too much.

        Raises:
            sqlite3.Error: it could not be written, not even in part.
        """
        connection = self._connection
        with _transaction(connection):
            connection.executemany(
                "INSERT INTO figures VALUES (?, ?, ?, ?) "
                "ON CONFLICT (day, upstream, name) DO UPDATE SET value = value + excluded.value",
                [
                    (day, upstream, name, value)
                    for (date, upstream, name), value in batch.figures.items()
                    for day in (date, "")  # in all
                ],
            )
            self._write_upstreams(batch)
            for principal, visit in batch.in_order():
                self._visits.write(principal, visit)
            self._trim(now)

    def write_fills(self, process: str, fills: Iterable[Filling], now: float) -> None:
        """Replace what a process said of its downloads under way.

        Raises:
            sqlite3.Error: it could not be written.
        """
        connection = self._connection
        with _transaction(connection):
            gone = now - 2 * FILL_SECONDS
            connection.execute("DELETE FROM fills WHERE process = ? OR seen < ?", (process, gone))
            connection.executemany(
                "INSERT INTO fills VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    (
                        *(process, fill.digest, fill.upstream, fill.repository),
                        *(fill.length, fill.total, fill.rate, fill.waiting, now),
                    )
                    for fill in fills
                ],
            )

    def close(self) -> None:
        """Close it."""
        self._connection.close()

    def _write_upstreams(self, batch: StatsBuffer) -> None:
        self._connection.executemany(
            "INSERT INTO upstreams (name, code, answered_at) VALUES (?, ?, ?) ON CONFLICT (name) "
            "DO UPDATE SET code = excluded.code, answered_at = excluded.answered_at",
            [(name, answer.code, answer.at) for name, answer in batch.answers.items()],
        )
        self._connection.executemany(
            "INSERT INTO upstreams (name, allowed, remaining) VALUES (?, ?, ?) ON CONFLICT (name) "
            "DO UPDATE SET allowed = excluded.allowed, remaining = excluded.remaining",
            [(name, limit.allowed, limit.remaining) for name, limit in batch.limits.items()],
        )

    def _trim(self, now: float) -> None:
        oldest = day_of(now, before=_DAYS)
        self._connection.execute("DELETE FROM figures WHERE day != '' AND day < ?", (oldest,))
        for fetched in (0, 1):
            self._connection.execute(
                "DELETE FROM pulls WHERE fetched = ?1 AND last <= (SELECT last FROM pulls "
                "WHERE fetched = ?1 ORDER BY last DESC LIMIT 1 OFFSET ?2)",
                (fetched, _PULLS),
            )
        self._connection.execute(
            "DELETE FROM images WHERE last <= "
            "(SELECT last FROM images ORDER BY last DESC LIMIT 1 OFFSET ?)",
            (_IMAGES,),
        )


def day_of(moment: float, *, before: int = 0) -> str:
    """The date of a time (Unix seconds) in the mirror's own time zone, or so many days before."""
    return (datetime.fromtimestamp(moment).astimezone() - timedelta(before)).date().isoformat()


def is_damage(error: sqlite3.Error) -> bool:
    """Whether it says that the database is none any more, or not one of ours."""
    return type(error) is sqlite3.DatabaseError or "no such table" in str(error)


def discard(directory: Path) -> None:
    """Remove a damaged database.

    Raises:
        OSError: it cannot be removed.
    """
    for suffix in ("", "-wal", "-shm"):
        (directory / f"{DATABASE}{suffix}").unlink(missing_ok=True)


@contextmanager
def opened_for_reading(directory: Path) -> Iterator[sqlite3.Connection]:
    """The database of a directory that others may be writing into, or that nobody may write into.

    Raises:
        sqlite3.Error: there is none, or it cannot be read.
    """
    uri = f"{(directory / DATABASE).absolute().as_uri()}?mode=ro"
    # Without the files that those who write share, and without leave to make them, it lies still.
    still = not os.access(directory, os.W_OK) and not (directory / f"{DATABASE}-shm").exists()
    uri += "&immutable=1" if still else ""
    with closing(sqlite3.connect(uri, _BUSY_SECONDS, uri=True)) as connection:
        yield connection


def _opened(path: Path, now: float) -> sqlite3.Connection:
    connection = sqlite3.connect(path, _BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")  # a crash costs a second, not the rest
        connection.execute("PRAGMA wal_autocheckpoint = 200")  # pages: disks may be small
        connection.execute(f"PRAGMA journal_size_limit = {_MOST_LOG_BYTES}")
        with _transaction(connection):
            _ensure_schema(connection, now)
    except BaseException:
        connection.close()
        raise
    return connection


def _ensure_schema(connection: sqlite3.Connection, now: float) -> None:
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version not in {0, _VERSION}:
        raise sqlite3.DatabaseError(f"version {version} of the ledger is not known")
    if version == 0:
        for statement in _SCHEMA.split(";"):
            connection.execute(statement)
        values = [("since", now), ("key", secrets.token_bytes(16))]
        connection.executemany("INSERT INTO meta VALUES (?, ?)", values)
        connection.execute(f"PRAGMA user_version = {_VERSION}")


@contextmanager
def _transaction(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


def _inode_of(path: Path) -> tuple[int, int] | None:
    try:
        there = path.stat()
    except OSError:
        return None
    return there.st_dev, there.st_ino
