"""All running fills of this process, and their rates.

They outlive a reload of the configuration.  A fill keeps the configuration that began it, and
clients that arrive after the reload join it instead of downloading the same blob again.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from mirror.oci.digest import Digest
from mirror.pull.fill import Fill
from mirror.pull.fill_reader import State
from mirror.pull.policy import UNWANTED_FILLS, UNWANTED_FILLS_OF_CLIENT
from mirror.pull.range_fetch import RangeFetches
from mirror.pull.room import Room
from mirror.shares import OPERATOR, asker
from mirror.stats.report import Filling


class Fills:
    """Running fills, by the digest of their blob."""

    def __init__(self, ahead: RangeFetches) -> None:
        """``ahead`` fetches the parts that lie too far ahead of a fill."""
        self.ahead = ahead
        self.room = Room()
        self._running: dict[Digest, Fill] = {}
        self._unread: dict[Fill, str] = {}  # fill -> the client that left it last
        self._unread_of: Counter[str] = Counter()
        self.prefetched: dict[Fill, str] = {}  # that no client has read -> its client

    def lookup(self, digest: Digest) -> Fill | None:
        """The fill of a blob that a client can join, or None."""
        fill = self._running.get(digest)
        return None if fill is None or fill.reader.state is State.FAILED else fill

    def begin(self, fill: Fill, ended: Callable[[], None]) -> None:
        """Start a fill and hold it until it ends; ``ended`` is called then."""
        self._running[fill.digest] = fill
        fill.start(ended=lambda: self._end(fill, ended))

    def enter(self, fill: Fill) -> None:
        """Add a reader to a fill."""
        self._forget_unread(fill)
        self.prefetched.pop(fill, None)
        fill.enter()

    def leave(self, fill: Fill) -> None:
        """Remove a reader from a fill; a few fills without readers continue for a moment."""
        if not fill.leave():
            return
        client = asker()
        # The operator's `mirror warm` begins many downloads, and comes back for each at once.
        if client != OPERATOR:
            if self._is_crowded(client):
                fill.give_up()
                return
            self._unread[fill] = client
            self._unread_of[client] += 1
        fill.linger()

    def give_way(self) -> None:
        """Stop the fills that no client has read yet: another download waits for a slot."""
        for fill in self.prefetched:
            fill.give_up()

    def _is_crowded(self, client: str) -> bool:
        return (
            len(self._unread) >= UNWANTED_FILLS
            or self._unread_of[client] >= UNWANTED_FILLS_OF_CLIENT
        )

    def _forget_unread(self, fill: Fill) -> None:
        client = self._unread.pop(fill, None)
        if client is not None:
            self._unread_of[client] -= 1
            self._unread_of += Counter()  # drops the clients with a count of 0

    def _end(self, fill: Fill, ended: Callable[[], None]) -> None:
        self.prefetched.pop(fill, None)
        ended()
        self._forget_unread(fill)
        # After a failure, a new fill may have begun before the task of this one ended.
        if self._running.get(fill.digest) is fill:
            del self._running[fill.digest]
            self.ahead.forget(fill.digest, spent=fill.reader.state is State.WHOLE)


#: The weight of the last sample: the rate is steady enough to read, and current within seconds.
_WEIGHT: Final = 0.4


@dataclass(frozen=True, slots=True)
class _Look:
    length: int
    at: float
    rate: float | None


class DownloadRates:
    """Computes the rate of each download from its last sample."""

    def __init__(self) -> None:
        self._looks: dict[Digest, _Look] = {}

    def fillings(self, fills: Iterable[Fill], now: float) -> list[Filling]:
        """Return each download's state at ``now`` (monotonic seconds); new ones have rate 0."""
        fillings, looks = [], {}
        for fill in fills:
            reader = fill.reader
            look = looks[fill.digest] = self._look(fill.digest, reader.length, now)
            registry, repository = fill.source.registry.name, fill.source.repository
            fillings.append(
                Filling(
                    *(str(fill.digest), registry, repository, reader.length, reader.total),
                    look.rate or 0.0,
                    fill.waiting,
                )
            )
        self._looks = looks
        return fillings

    def _look(self, digest: Digest, length: int, now: float) -> _Look:
        before = self._looks.get(digest)
        if before is None or now <= before.at:
            return _Look(length, now, None)
        rate = max(length - before.length, 0) / (now - before.at)
        if before.rate is not None:
            rate = _WEIGHT * rate + (1 - _WEIGHT) * before.rate
        return _Look(length, now, rate)
