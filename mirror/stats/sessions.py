"""The definition of a pull, and the conversion of sessions to pulls.  Runs in a transaction.

A registry receives requests, not pulls.  The rule:

*A pull is the transfer of one image to one client without a pause of a minute.  It begins with a
request for a manifest; the client's requests for blobs of the same repository belong to it.  The
number of pulls is the number of HEAD requests or of GET requests for the image by its name,
the larger of the two.  A client that sends only HEAD requests has not pulled.*

The HEAD, the GET of the tag and the GET of its platform that dockerd sends are therefore one pull,
and a job that pulls the same tag ten times in a minute is one row with the count ten.  A name is
a tag, or a digest if the client requested no tag of the repository.  Two clients with the same
address and the same program count as one.  Several processes may write parts of one pull, in any
order; this module combines them.
"""

import hashlib
import sqlite3
from dataclasses import dataclass
from typing import Final

from mirror.stats.buffer import Asked, PullClient, Session, worse

_PAUSE_SECONDS: Final = 60.0
#: Maximum delay of the process that writes the manifest, relative to that of the blobs.
_LATE_SECONDS: Final = 5.0

_COLUMNS: Final = (
    "id, reference, means, first, last, heads, gets, fetched, result, sent_bytes, missed_bytes"
)


@dataclass(slots=True)
class _Row:
    id: int
    reference: str
    means: str
    first: float
    last: float
    heads: int
    gets: int
    fetched: int
    result: str
    sent_bytes: int
    missed_bytes: int

    @property
    def pulls(self) -> int:
        return max(self.heads, self.gets) if self.fetched else 0

    @property
    def named(self) -> bool:
        """Whether the client requested the image by tag."""
        return self.reference != "" and ":" not in self.reference


class SessionWriter:
    """Writes sessions as pulls and images."""

    def __init__(self, connection: sqlite3.Connection, key: bytes) -> None:
        """``key`` is for the keyed hash that identifies a client; addresses are not stored."""
        self._connection = connection
        self._key = key

    def write(self, client: PullClient, session: Session) -> None:
        """Add a session to the pulls that it belongs to."""
        rows = self._under_way(client, session)
        tags = {name: asked for name, asked in session.asked.items() if ":" not in name}
        digests = {name: asked for name, asked in session.asked.items() if ":" in name}
        for tag, asked in tags.items():
            row = self._row_of_tag(client, session, rows, tag)
            row.means = asked.digest or row.means
            self._ask(client, row, asked, own=True)
        for digest, asked in digests.items():
            meant = [row for row in rows if digest in {row.means, row.reference}]
            for row in meant or [self._latest(client, session, rows, digest)]:
                self._ask(client, row, asked, own=row.reference == digest)
        self._add(client, session, self._latest(client, session, rows, ""))

    def _under_way(self, client: PullClient, session: Session) -> list[_Row]:
        """Return the pulls that a session may belong to, the latest last."""
        found = self._connection.execute(
            f"SELECT {_COLUMNS} FROM pulls WHERE visitor = ? AND upstream = ? AND repository = ? "  # noqa: S608  # a constant
            "AND last >= ? AND first <= ? ORDER BY id",
            (
                self._hash(client),
                client.upstream,
                client.repository,
                session.first - _PAUSE_SECONDS,
                session.last + _LATE_SECONDS,
            ),
        )
        return [_Row(*row) for row in found]

    def _row_of_tag(self, client: PullClient, session: Session, rows: list[_Row], tag: str) -> _Row:
        same = [row for row in rows if row.reference == tag]
        if same:
            return same[-1]
        for row in reversed(rows):
            # Another process wrote the blobs of this pull before its tag.
            if not row.named and row.first >= session.first - _LATE_SECONDS:
                self._rename(client, row, tag)
                return row
        return self._new(client, session, rows, tag)

    def _latest(
        self, client: PullClient, session: Session, rows: list[_Row], reference: str
    ) -> _Row:
        if not rows:
            return self._new(client, session, rows, reference)
        row = rows[-1]
        if reference and not row.reference:
            self._rename(client, row, reference)
        return row

    def _new(self, client: PullClient, session: Session, rows: list[_Row], reference: str) -> _Row:
        done = self._connection.execute(
            "INSERT INTO pulls (visitor, upstream, repository, reference, client, first, last) "
            "VALUES (?, ?, ?, ?, ?, ?, ?)",
            (
                self._hash(client),
                client.upstream,
                client.repository,
                reference,
                client.agent,
                session.first,
                session.first,
            ),
        )
        number = done.lastrowid or 0
        rows.append(_Row(number, reference, "", session.first, session.first, 0, 0, 0, "", 0, 0))
        return rows[-1]

    def _rename(self, client: PullClient, row: _Row, reference: str) -> None:
        self._count(client, row, -row.pulls)
        row.reference, row.heads, row.gets = reference, 0, 0

    def _ask(self, client: PullClient, row: _Row, asked: Asked, *, own: bool) -> None:
        """Add manifest requests to a pull; ``own``: the requests used the name of the pull."""
        before = row.pulls
        row.heads += asked.heads if own else 0
        row.gets += asked.gets if own else 0
        row.fetched = int(row.fetched or asked.gets > 0)
        self._save(row)
        self._count(client, row, row.pulls - before)
        if asked.content_bytes:
            self._connection.execute(
                "UPDATE images SET digest = ?, size = ? "
                "WHERE upstream = ? AND repository = ? AND reference = ?",
                (asked.digest, asked.content_bytes, *_name(client, row)),
            )

    def _add(self, client: PullClient, session: Session, row: _Row) -> None:
        row.first, row.last = min(row.first, session.first), max(row.last, session.last)
        row.result = worse(row.result, session.result)
        row.sent_bytes += session.sent_bytes
        row.missed_bytes += session.missed_bytes
        self._save(row)
        self._connection.execute(
            "UPDATE images SET last = max(last, ?) "
            "WHERE upstream = ? AND repository = ? AND reference = ?",
            (session.last, *_name(client, row)),
        )

    def _save(self, row: _Row) -> None:
        self._connection.execute(
            "UPDATE pulls SET reference = ?, means = ?, first = ?, last = ?, heads = ?, gets = ?, "
            "fetched = ?, result = ?, sent_bytes = ?, missed_bytes = ? WHERE id = ?",
            (
                *(row.reference, row.means, row.first, row.last, row.heads, row.gets),
                *(row.fetched, row.result, row.sent_bytes, row.missed_bytes, row.id),
            ),
        )

    def _count(self, client: PullClient, row: _Row, pulls: int) -> None:
        if not pulls:
            return
        self._connection.execute(
            "INSERT INTO images (upstream, repository, reference, pulls, last) "
            "VALUES (?, ?, ?, ?, ?) ON CONFLICT (upstream, repository, reference) "
            "DO UPDATE SET pulls = pulls + excluded.pulls",
            (*_name(client, row), pulls, row.last),
        )
        self._connection.execute(
            "DELETE FROM images WHERE upstream = ? AND repository = ? AND reference = ? "
            "AND pulls <= 0",
            _name(client, row),
        )

    def _hash(self, client: PullClient) -> bytes:
        text = f"{client.address} {client.agent}".encode(errors="replace")
        return hashlib.blake2b(text, key=self._key, digest_size=8).digest()


def _name(client: PullClient, row: _Row) -> tuple[str, str, str]:
    return client.upstream, client.repository, row.reference
