"""The fills under way in this process, whoever began them.

They outlive a configuration: what was begun under one goes on under it, and whoever comes under
the next reads along instead of downloading the same blob again.
"""

from collections import Counter
from collections.abc import Callable

from mirror.oci.digest import Digest
from mirror.pull.fill import Fill
from mirror.pull.fill_reader import State
from mirror.pull.policy import UNWANTED_FILLS, UNWANTED_FILLS_OF_CLIENT
from mirror.pull.range_fetch import RangeFetches
from mirror.shares import asker


class Fills:
    """Fills by the digest of their blob, until they are over."""

    def __init__(self, ahead: RangeFetches) -> None:
        """Fetch parts that lie too far ahead of a fill by ``ahead``."""
        self.ahead = ahead
        self._running: dict[Digest, Fill] = {}
        self._unread: dict[Fill, str] = {}  # and the client that left it last
        self._unread_of: Counter[str] = Counter()

    def lookup(self, digest: Digest) -> Fill | None:
        """The fill of a blob, None where there is none that could be joined."""
        fill = self._running.get(digest)
        return None if fill is None or fill.reader.state is State.FAILED else fill

    def begin(self, fill: Fill, ended: Callable[[], None]) -> None:
        """Start a fill, and keep it until it is over; ``ended`` is called then."""
        self._running[fill.digest] = fill
        fill.start(ended=lambda: self._end(fill, ended))

    def enter(self, fill: Fill) -> None:
        """One more reader."""
        self._forget_unread(fill)
        fill.enter()

    def leave(self, fill: Fill) -> None:
        """One reader less; of the fills without readers a few go on for a moment."""
        if not fill.leave():
            return
        client = asker()
        if (
            len(self._unread) >= UNWANTED_FILLS
            or self._unread_of[client] >= UNWANTED_FILLS_OF_CLIENT
        ):
            fill.give_up()
            return
        self._unread[fill] = client
        self._unread_of[client] += 1
        fill.linger()

    def _forget_unread(self, fill: Fill) -> None:
        client = self._unread.pop(fill, None)
        if client is not None:
            self._unread_of[client] -= 1
            self._unread_of += Counter()  # without the clients that have left none

    def _end(self, fill: Fill, ended: Callable[[], None]) -> None:
        ended()
        self._forget_unread(fill)
        # A failed fill may have been followed by another before it came to its end.
        if self._running.get(fill.digest) is fill:
            del self._running[fill.digest]
            self.ahead.forget(fill.digest, spent=fill.reader.state is State.WHOLE)
