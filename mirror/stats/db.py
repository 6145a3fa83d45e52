"""The database of the ledger (SQLite).  Synchronous: its owner must use it from one thread.

All processes that use the cache directory write to the same database, in short transactions.  It
is bounded: figures by day for 90 days and by hour for one day, about 500 pulls, 200 failed pulls,
10,000 images and their pulls per day for a month.  It needs SQLite 3.24 (2018)
only, because Python uses the SQLite of the system.
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
from mirror.trouble import Problem

DATABASE: Final = "ledger.db"

_VERSION: Final = 1
_BUSY_SECONDS: Final = 5.0  # maximum wait while another process writes
_MOST_LOG_BYTES: Final = 1024 * 1024
_DAYS: Final = 90
_PULLS: Final = 500
_IMAGES: Final = 10_000
_HOURS: Final = 26
_IMAGE_DAYS: Final = 50_000  # rows
_IMAGE_HISTORY: Final = 31  # days
_FAILURES: Final = 200
_FAILURE_SECONDS: Final = 7 * 24 * 3600.0
HOUR_SECONDS: Final = 3600
#: Lifetime of a row in ``fills`` and in ``problems``.  A process renews its rows every second, or
#: later when busy.
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

#: Tables of later releases: an earlier one ignores them, so the version stays.
_ADDED: Final = """
CREATE TABLE IF NOT EXISTS hours (
    hour INTEGER, upstream TEXT, name TEXT, value INTEGER NOT NULL,
    PRIMARY KEY (hour, upstream, name)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS image_days (
    id INTEGER PRIMARY KEY, upstream TEXT NOT NULL, repository TEXT NOT NULL,
    reference TEXT NOT NULL, day TEXT NOT NULL, pulls INTEGER NOT NULL,
    UNIQUE (upstream, repository, reference, day)
);
CREATE INDEX IF NOT EXISTS image_days_by_age ON image_days (day);
CREATE TABLE IF NOT EXISTS failures (
    upstream TEXT, repository TEXT, reference TEXT, client TEXT, result TEXT, reason TEXT,
    times INTEGER NOT NULL, first REAL NOT NULL, last REAL NOT NULL,
    PRIMARY KEY (upstream, repository, reference, client, result, reason)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS failures_by_age ON failures (last);
CREATE TABLE IF NOT EXISTS problems (
    process TEXT, title TEXT, cause TEXT NOT NULL, remedy TEXT NOT NULL, until REAL,
    since REAL NOT NULL, seen REAL NOT NULL, renewed REAL NOT NULL,
    PRIMARY KEY (process, title)
) WITHOUT ROWID;
"""


class StatsDatabase:
    """The open database of one directory."""

    def __init__(self, directory: Path, now: float) -> None:
        """Open or create the database at ``now`` (Unix seconds); replace a damaged one.

        Raises:
            OSError, sqlite3.Error: the database cannot be opened or written.
        """
        self.path = directory / DATABASE
        directory.mkdir(mode=0o700, exist_ok=True)
        try:
            self.connection = _opened(self.path, now)
        except sqlite3.DatabaseError as error:
            if not is_damage(error):
                raise
            discard(directory)
            self.connection = _opened(self.path, now)
        self._inode = _inode_of(self.path)
        select_key = "SELECT value FROM meta WHERE name = 'key'"
        self._key: bytes = self.connection.execute(select_key).fetchone()[0]

    def in_place(self) -> bool:
        """Return True if the open database is still the file in the directory."""
        return self._inode is not None and self._inode == _inode_of(self.path)

    def write(self, buffer: StatsBuffer, now: float) -> None:
        """Write a buffer at ``now`` (Unix seconds), and delete rows over the limits.

        Raises:
            sqlite3.Error: the write failed; the database is unchanged.
        """
        connection = self.connection
        with _transaction(connection):
            connection.executemany(
                "INSERT INTO figures VALUES (?, ?, ?, ?) "
                "ON CONFLICT (day, upstream, name) DO UPDATE SET value = value + excluded.value",
                [
                    (day, upstream, name, value)
                    for (date, _, upstream, name), value in buffer.figures.items()
                    for day in (date, "")  # "" is the total of all days
                ],
            )
            connection.executemany(
                "INSERT INTO hours VALUES (?, ?, ?, ?) "
                "ON CONFLICT (hour, upstream, name) DO UPDATE SET value = value + excluded.value",
                [(*rest, value) for (_, *rest), value in buffer.figures.items()],
            )
            self._write_upstreams(buffer)
            self._write_failures(buffer)
            day = day_of(now)
            for client, session in buffer.in_order():
                SessionWriter(connection, self._key, day, client, session).write()
            self._trim(now)

    def write_lasting(
        self, process: str, fills: Iterable[Filling], problems: Iterable[Problem], now: float
    ) -> None:
        """Replace the running downloads and the troubles of a process.

        Raises:
            sqlite3.Error: the write failed.
        """
        connection, gone = self.connection, now - 2 * FILL_SECONDS
        with _transaction(connection):
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
            connection.execute(
                "DELETE FROM problems WHERE process = ? OR renewed < ?", (process, gone)
            )
            connection.executemany(
                "INSERT OR REPLACE INTO problems VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                [
                    (
                        *(process, each.title, each.cause, each.remedy, each.until),
                        *(each.since, each.seen, now),
                    )
                    for each in problems
                ],
            )

    def close(self) -> None:
        self.connection.close()

    def _write_upstreams(self, buffer: StatsBuffer) -> None:
        self.connection.executemany(
            "INSERT INTO upstreams (name, code, answered_at) VALUES (?, ?, ?) ON CONFLICT (name) "
            "DO UPDATE SET code = excluded.code, answered_at = excluded.answered_at",
            [(name, *answer) for name, answer in buffer.answers.items()],
        )
        self.connection.executemany(
            "INSERT INTO upstreams (name, allowed, remaining) VALUES (?, ?, ?) ON CONFLICT (name) "
            "DO UPDATE SET allowed = excluded.allowed, remaining = excluded.remaining",
            [(name, *limit) for name, limit in buffer.limits.items()],
        )

    def _write_failures(self, buffer: StatsBuffer) -> None:
        self.connection.executemany(
            "INSERT INTO failures VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) "
            "ON CONFLICT (upstream, repository, reference, client, result, reason) DO UPDATE SET "
            "times = times + excluded.times, last = max(last, excluded.last)",
            [
                (*each, repeats.count, repeats.first, repeats.last)
                for each, repeats in buffer.failures.items()
            ],
        )

    def _trim(self, now: float) -> None:
        oldest = day_of(now, before=_DAYS)
        self.connection.execute("DELETE FROM figures WHERE day != '' AND day < ?", (oldest,))
        for fetched in (0, 1):
            self.connection.execute(
                "DELETE FROM pulls WHERE fetched = ?1 AND last <= (SELECT last FROM pulls "
                "WHERE fetched = ?1 ORDER BY last DESC LIMIT 1 OFFSET ?2)",
                (fetched, _PULLS),
            )
        self.connection.execute(
            "DELETE FROM images WHERE last <= "
            "(SELECT last FROM images ORDER BY last DESC LIMIT 1 OFFSET ?)",
            (_IMAGES,),
        )
        hour = int(now // HOUR_SECONDS) - _HOURS
        self.connection.execute("DELETE FROM hours WHERE hour < ?", (hour,))
        self.connection.execute(
            "DELETE FROM image_days WHERE day < ?1 OR id <= (SELECT max(id) FROM image_days) - ?2",
            (day_of(now, before=_IMAGE_HISTORY), _IMAGE_DAYS),
        )
        self.connection.execute(
            "DELETE FROM failures WHERE last < ?1 OR last <= "
            "(SELECT last FROM failures ORDER BY last DESC LIMIT 1 OFFSET ?2)",
            (now - _FAILURE_SECONDS, _FAILURES),
        )


def day_of(moment: float, *, before: int = 0) -> str:
    """Return the local date of ``moment`` (Unix seconds), minus ``before`` days."""
    return (datetime.fromtimestamp(moment).astimezone() - timedelta(before)).date().isoformat()


def is_damage(error: sqlite3.Error) -> bool:
    """Return True if the error means that the file is corrupt or not a ledger."""
    return type(error) is sqlite3.DatabaseError or "no such table" in str(error)


def discard(directory: Path) -> None:
    """Remove a damaged database.

    Raises:
        OSError: a file cannot be removed.
    """
    for suffix in ("", "-wal", "-shm"):
        (directory / f"{DATABASE}{suffix}").unlink(missing_ok=True)


@contextmanager
def opened_for_reading(directory: Path) -> Iterator[sqlite3.Connection]:
    """Open the database read-only; other processes may write to it.

    The directory may be read-only.

    Raises:
        sqlite3.Error: the database is missing or cannot be read.
    """
    uri = f"{(directory / DATABASE).absolute().as_uri()}?mode=ro"
    # A missing -shm file means that no process writes.  Without permission to create that file,
    # SQLite can open the database as immutable only.
    still = not os.access(directory, os.W_OK) and not (directory / f"{DATABASE}-shm").exists()
    uri += "&immutable=1" if still else ""
    with closing(sqlite3.connect(uri, _BUSY_SECONDS, uri=True)) as connection:
        yield connection


def _opened(path: Path, now: float) -> sqlite3.Connection:
    connection = sqlite3.connect(path, _BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")  # a crash loses the last second only
        connection.execute("PRAGMA wal_autocheckpoint = 200")  # pages: the disk may be small
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
        raise sqlite3.DatabaseError(f"unsupported ledger version {version}")
    if version == 0:
        for statement in _SCHEMA.split(";"):
            connection.execute(statement)
        values = [("since", now), ("key", secrets.token_bytes(16))]
        connection.executemany("INSERT INTO meta VALUES (?, ?)", values)
        connection.execute(f"PRAGMA user_version = {_VERSION}")
    for statement in _ADDED.split(";"):
        connection.execute(statement)


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
