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
from dataclasses import astuple, dataclass
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
    """Adds one session to the pulls that it belongs to, and to the images."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        key: bytes,
        day: str,
        client: PullClient,
        session: Session,
    ) -> None:
        """Count for ``day``.

        ``key`` is for the keyed hash that identifies a client; addresses are not stored.
        """
        self._day = day
        self._connection = connection
        self._client = client
        self._session = session
        text = f"{client.address} {client.agent}".encode(errors="replace")
        visitor = hashlib.blake2b(text, key=key, digest_size=8).digest()
        self._place = visitor, client.upstream, client.repository
        self._rows = self._under_way()

    def write(self) -> None:
        session = self._session
        tags = {name: asked for name, asked in session.asked.items() if ":" not in name}
        digests = {name: asked for name, asked in session.asked.items() if ":" in name}
        for tag, asked in tags.items():
            row = self._row_of_tag(tag)
            row.means = asked.digest or row.means
            self._ask(row, asked, own=True)
        for digest, asked in digests.items():
            meant = [row for row in self._rows if digest in {row.means, row.reference}]
            for row in meant or [self._latest(digest)]:
                self._ask(row, asked, own=row.reference == digest)
        self._add(self._latest(""))

    def _under_way(self) -> list[_Row]:
        """Return the pulls that the session may belong to, the latest last."""
        times = self._session.first - _PAUSE_SECONDS, self._session.last + _LATE_SECONDS
        found = self._connection.execute(
            f"SELECT {_COLUMNS} FROM pulls WHERE visitor = ? AND upstream = ? AND repository = ? "  # noqa: S608  # a constant
            "AND last >= ? AND first <= ? ORDER BY id",
            (*self._place, *times),
        )
        return [_Row(*row) for row in found]

    def _row_of_tag(self, tag: str) -> _Row:
        same = [row for row in self._rows if row.reference == tag]
        if same:
            return same[-1]
        for row in reversed(self._rows):
            # Another process wrote the blobs of this pull before its tag.
            if not row.named and row.first >= self._session.first - _LATE_SECONDS:
                self._rename(row, tag)
                return row
        return self._new(tag)

    def _latest(self, reference: str) -> _Row:
        if not self._rows:
            return self._new(reference)
        row = self._rows[-1]
        if reference and not row.reference:
            self._rename(row, reference)
        return row

    def _new(self, reference: str) -> _Row:
        first = self._session.first
        done = self._connection.execute(
            "INSERT INTO pulls (visitor, upstream, repository, reference, client, first, last) "
            "VALUES (?, ?, ?, ?, ?, ?, ?)",
            (*self._place, reference, self._client.agent, first, first),
        )
        row = _Row(done.lastrowid or 0, reference, "", first, first, 0, 0, 0, "", 0, 0)
        self._rows.append(row)
        return row

    def _rename(self, row: _Row, reference: str) -> None:
        self._count(row, -row.pulls)
        row.reference, row.heads, row.gets = reference, 0, 0

    def _ask(self, row: _Row, asked: Asked, *, own: bool) -> None:
        """Add manifest requests to a pull; ``own``: the requests used the name of the pull."""
        before = row.pulls
        row.heads += asked.heads if own else 0
        row.gets += asked.gets if own else 0
        row.fetched = int(row.fetched or asked.gets > 0)
        self._save(row)
        self._count(row, row.pulls - before)
        if asked.content_bytes:
            self._update_image(row, "digest = ?, size = ?", asked.digest, asked.content_bytes)

    def _add(self, row: _Row) -> None:
        session = self._session
        row.first, row.last = min(row.first, session.first), max(row.last, session.last)
        row.result = worse(row.result, session.result)
        row.sent_bytes += session.sent_bytes
        row.missed_bytes += session.missed_bytes
        self._save(row)
        self._update_image(row, "last = max(last, ?)", session.last)

    def _save(self, row: _Row) -> None:
        number, *values = astuple(row)
        columns = _COLUMNS.partition(", ")[2]
        self._connection.execute(
            f"UPDATE pulls SET ({columns}) = ({', '.join('?' * len(values))}) WHERE id = ?",  # noqa: S608  # constants
            (*values, number),
        )

    def _update_image(self, row: _Row, change: str, *values: str | float) -> None:
        self._connection.execute(
            f"UPDATE images SET {change} WHERE upstream = ? AND repository = ? AND reference = ?",  # noqa: S608  # constants
            (*values, *self._place[1:], row.reference),
        )

    def _count(self, row: _Row, pulls: int) -> None:
        if not pulls:
            return
        name = (*self._place[1:], row.reference)
        self._connection.execute(
            "INSERT INTO images (upstream, repository, reference, pulls, last) "
            "VALUES (?, ?, ?, ?, ?) ON CONFLICT (upstream, repository, reference) "
            "DO UPDATE SET pulls = pulls + excluded.pulls",
            (*name, pulls, row.last),
        )
        self._connection.execute(
            "INSERT INTO image_days (upstream, repository, reference, day, pulls) "
            "VALUES (?, ?, ?, ?, ?) ON CONFLICT (upstream, repository, reference, day) "
            "DO UPDATE SET pulls = pulls + excluded.pulls",
            (*name, self._day, pulls),
        )
        self._connection.execute(
            "DELETE FROM images WHERE upstream = ? AND repository = ? AND reference = ? "
            "AND pulls <= 0",
            name,
        )
