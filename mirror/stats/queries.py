"""Reads the ledger, in the process that writes it or in another one.  A mirror need not run.

Read-only; depends on the database only.
"""

import sqlite3
from collections import defaultdict
from pathlib import Path
from typing import Final

from mirror.stats.db import FILL_SECONDS, day_of, opened_for_reading
from mirror.stats.report import Figures, Filling, Image, Pull, StatsReport, UpstreamAccount

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
        return StatsReport(
            since=connection.execute("SELECT value FROM meta WHERE name = 'since'").fetchone()[0],
            upstreams=_upstreams(connection, day_of(now)),
            days=_days(connection),
            recent=_pulls(connection, recent),
            most_pulled=_images(connection, "ORDER BY pulls DESC, last DESC", images),
            largest=_images(connection, "WHERE size > 0 ORDER BY size DESC, last DESC", images),
            longest_unused=_images(connection, "ORDER BY last", images),
            fills=_fills(connection, now),
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


def _days(connection: sqlite3.Connection) -> tuple[tuple[str, Figures], ...]:
    rows: defaultdict[str, list[tuple[str, int]]] = defaultdict(list)
    for day, name, value in connection.execute(
        "SELECT day, name, sum(value) FROM figures WHERE day != '' GROUP BY day, name ORDER BY day"
    ):
        rows[day].append((name, value))
    return tuple((day, _figures(figures)) for day, figures in rows.items())


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
