"""The fills under way in this process, whoever began them.

They outlive a configuration: what was begun under one goes on under it, and whoever comes under
the next reads along instead of downloading the same blob again.
"""

from collections.abc import Callable

from mirror.oci.digest import Digest
from mirror.pull.ahead import Ahead
from mirror.pull.fill import Fill
from mirror.pull.growth import State


class Fills:
    """Fills by the digest of their blob, until they are over."""

    def __init__(self, ahead: Ahead) -> None:
        """Fetch parts that lie too far ahead of a fill by ``ahead``."""
        self.ahead = ahead
        self._running: dict[Digest, Fill] = {}

    def lookup(self, digest: Digest) -> Fill | None:
        """The fill of a blob, None where there is none that could be joined."""
        fill = self._running.get(digest)
        return None if fill is None or fill.growth.state is State.FAILED else fill

    def begin(self, fill: Fill, ended: Callable[[], None]) -> None:
        """Start a fill, and keep it until it is over; ``ended`` is called then."""
        self._running[fill.digest] = fill
        fill.start(ended=lambda: self._end(fill, ended))

    def _end(self, fill: Fill, ended: Callable[[], None]) -> None:
        ended()
        # A failed fill may have been followed by another before it came to its end.
        if self._running.get(fill.digest) is fill:
            del self._running[fill.digest]
            self.ahead.forget(fill.digest, spent=fill.growth.state is State.WHOLE)
