"""Reads the ledger, in the process that writes it or in another one.  A mirror need not run.

Read-only; depends on the database only.
"""

import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final, TypeVar

from mirror.stats.db import FILL_SECONDS, HOUR_SECONDS, day_of, opened_for_reading
from mirror.stats.report import (
    Failure,
    Figures,
    Filling,
    History,
    Image,
    Pull,
    StatsReport,
    UpstreamAccount,
)
from mirror.trouble import Problem, merged

K = TypeVar("K", str, int)

_RECENT: Final = 50
_IMAGES: Final = 10
_BYTES: Final = ("served_bytes", "upstream_bytes")
_IMAGE: Final = "SELECT upstream, repository, reference, pulls, last, digest, size FROM images"


def read_report(
    directory: Path, now: float, *, recent: int = _RECENT, images: int = _IMAGES
) -> StatsReport:
    """Return the content of the ledger in a directory at ``now`` (Unix seconds).

    ``recent`` limits the number of pulls, ``images`` the length of each list of images.  If the
    ledger cannot be read, the report contains only ``trouble``; if it is missing, nothing.
    """
    if not directory.exists():
        return StatsReport()
    try:
        with opened_for_reading(directory) as connection:
            return report_of(connection, now, recent=recent, images=images)
    except (OSError, sqlite3.Error) as error:
        return StatsReport(trouble=f"the ledger cannot be read: {error}")


def report_of(
    connection: sqlite3.Connection, now: float, *, recent: int = _RECENT, images: int = _IMAGES
) -> StatsReport:
    """Return the content of the ledger, read in one transaction.

    Raises:
        sqlite3.Error: the ledger cannot be read.
    """
    connection.execute("BEGIN")
    try:
        failures, problems = _added(connection, now, recent)
        return StatsReport(
            since=connection.execute("SELECT value FROM meta WHERE name = 'since'").fetchone()[0],
            upstreams=_upstreams(connection, day_of(now)),
            recent=_pulls(connection, recent),
            most_pulled=_images(connection, "ORDER BY pulls DESC, last DESC", images),
            largest=_images(connection, "WHERE size > 0 ORDER BY size DESC, last DESC", images),
            longest_unused=_images(connection, "ORDER BY last", images),
            fills=_fills(connection, now),
            failures=failures,
            problems=problems,
        )
    finally:
        connection.execute("ROLLBACK")


def _figures(rows: list[tuple[str, int]]) -> Figures:
    named = dict(rows)
    served, got = (named.pop(name, 0) for name in _BYTES)
    return Figures(named, served, got)


def _upstreams(connection: sqlite3.Connection, today: str) -> tuple[UpstreamAccount, ...]:
    rows: defaultdict[tuple[str, str], list[tuple[str, int]]] = defaultdict(list)
    for day, upstream, name, value in connection.execute(
        "SELECT day, upstream, name, value FROM figures WHERE day IN ('', ?)", (today,)
    ):
        rows[upstream, day].append((name, value))
    said = {
        name: rest
        for name, *rest in connection.execute(
            "SELECT name, code, answered_at, allowed, remaining FROM upstreams"
        )
    }
    # Earlier releases counted requests for a registry that is not configured under no name.
    names = sorted(({name for name, _ in rows} | said.keys()) - {""})
    return tuple(
        UpstreamAccount(
            name, _figures(rows[name, ""]), _figures(rows[name, today]), *said.get(name, ())
        )
        for name in names
    )


def history_of(connection: sqlite3.Connection, now: float, hours: int, days: int) -> History:
    """Return the figures of the last hours and days, this hour and today included.

    Raises:
        sqlite3.Error: the ledger cannot be read.
    """
    hour, day = int(now // HOUR_SECONDS) - hours, day_of(now, before=days)
    select = "SELECT hour, upstream, name, value FROM hours WHERE hour > ?"
    by_hour: Mapping[int, Mapping[str, Figures]] = _periods(connection.execute(select, (hour,)))
    select = "SELECT day, upstream, name, value FROM figures WHERE day > ?"
    return History(by_hour, _periods(connection.execute(select, (day,))))


def _periods(rows: Iterable[tuple[K, str, str, int]]) -> dict[K, dict[str, Figures]]:
    found: defaultdict[K, defaultdict[str, list[tuple[str, int]]]] = defaultdict(
        lambda: defaultdict(list)
    )
    for period, upstream, name, value in rows:
        found[period][upstream].append((name, value))
    return {
        period: {upstream: _figures(figures) for upstream, figures in upstreams.items()}
        for period, upstreams in found.items()
    }


def images_of(connection: sqlite3.Connection, upstream: str, repository: str) -> list[Image]:
    """Return the pulled images of a repository, the latest first, at most 200.

    Raises:
        sqlite3.Error: the ledger cannot be read.
    """
    where = "WHERE upstream = ? AND repository = ? ORDER BY last DESC LIMIT 200"
    return [Image(*row) for row in connection.execute(f"{_IMAGE} {where}", (upstream, repository))]


def daily_pulls_of(
    connection: sqlite3.Connection, now: float, days: int, place: tuple[str, str], reference: str
) -> dict[str, int]:
    """Return the pulls of an image by local date, for the last ``days`` days.

    ``place`` is the upstream and the repository; an empty ``reference`` means all of its images.

    Raises:
        sqlite3.Error: the ledger cannot be read.
    """
    return dict(
        connection.execute(
            "SELECT day, sum(pulls) FROM image_days WHERE upstream = ?1 AND repository = ?2 "
            "AND (?3 = '' OR reference = ?3) AND day > ?4 GROUP BY day HAVING sum(pulls) > 0",
            (*place, reference, day_of(now, before=days)),
        )
    )


def _added(
    connection: sqlite3.Connection, now: float, most: int
) -> tuple[tuple[Failure, ...], tuple[Problem, ...]]:
    """Return what the tables of later releases hold; an earlier release wrote none of them."""
    exists = "SELECT 1 FROM sqlite_master WHERE name = 'problems'"
    if connection.execute(exists).fetchone() is None:
        return (), ()
    failures = connection.execute(
        "SELECT upstream, repository, reference, client, result, reason, times, first, last "
        "FROM failures ORDER BY last DESC LIMIT ?",
        (most,),
    )
    problems = connection.execute(
        "SELECT title, cause, remedy, until, since, seen FROM problems WHERE renewed > ?",
        (now - FILL_SECONDS,),
    )
    lasting = merged(Problem(*row) for row in problems)
    return tuple(Failure(*row) for row in failures), tuple(lasting)


def _pulls(connection: sqlite3.Connection, most: int) -> tuple[Pull, ...]:
    return tuple(
        Pull(*row)
        for row in connection.execute(
            "SELECT upstream, repository, reference, client, first, last - first, "
            "max(heads, gets, 1), result, sent_bytes, missed_bytes FROM pulls "
            "WHERE fetched = 1 ORDER BY last DESC LIMIT ?",
            (most,),
        )
    )


def _images(connection: sqlite3.Connection, which: str, most: int) -> tuple[Image, ...]:
    found = connection.execute(f"{_IMAGE} {which} LIMIT ?", (most,))
    return tuple(Image(*row) for row in found)


def _fills(connection: sqlite3.Connection, now: float) -> tuple[Filling, ...]:
    """Return each download once, with the clients of all processes.

    The values are those of the process with the largest length.
    """
    return tuple(
        Filling(*row)
        for row in connection.execute(
            # SQLite takes the other columns from the row with the maximum.
            "SELECT digest, upstream, repository, max(length), total, rate, sum(waiting) "
            "FROM fills WHERE seen > ? GROUP BY digest ORDER BY upstream, repository, digest",
            (now - FILL_SECONDS,),
        )
    )
