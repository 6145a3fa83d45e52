"""Limits and numeric decisions of pulls, as pure functions that are easy to read and to test."""

import math
from dataclasses import dataclass
from typing import Final

#: The last bytes of a blob, held back until the digest is verified.  Large enough that no client
#: mistakes a partial body for the whole; small enough that clients do not notice the wait.
HOLD_BACK_BYTES: Final = 64 * 1024

#: A fill of unknown size reserves disk space in steps of this size.
GROWTH_STEP_BYTES: Final = 16 * 1024 * 1024

#: The most bytes collected in memory while the disk is busy with the batch before.
BATCH_BYTES: Final = 1024 * 1024

#: Readers of a growing blob are woken after this many new bytes, or after this long.  Each wake-up
#: costs a turn in a thread per reader, and many readers would starve the download.  (With 1 MiB,
#: 16 readers of a GiB need half a second more CPU; a single reader needs a tenth more.)
WAKE_BYTES: Final = 4 * 1024 * 1024
WAKE_SECONDS: Final = 0.02

#: The buffer of a blob that passes through to a client, which may be slow.  Small, since there may
#: be a thousand such clients.
PASSING_BUFFER_BYTES: Final = 64 * 1024

#: How long the request for a part waits for its bytes and for the verification of the whole blob.
#: If that takes longer, the part is relayed from upstream.
PART_PATIENCE_SECONDS: Final = 1.0
#: How long the speed of a fill is measured before it is used for an estimate.
PART_LOOK_SECONDS: Final = 0.25
#: The size of a piece fetched ahead of a fill; pieces wait in memory.
AHEAD_PIECE_BYTES: Final = 1024 * 1024
#: The most bytes fetched ahead of a fill, as a share of the blob; they are fetched twice.
AHEAD_SHARE: Final = 0.04

#: How long a fill or a request to upstream continues without a waiting client: long enough for a
#: client to come back after a broken connection or a time-out of its own.
UNWANTED_SECONDS: Final = 3.0
#: How many bytes a fill without readers may still download.
UNWANTED_BYTES: Final = 8 * 1024 * 1024
#: How many fills may continue without readers: per client that left them, and in all.
UNWANTED_FILLS_OF_CLIENT: Final = 3
UNWANTED_FILLS: Final = 12
#: How many layers are downloaded at once before a client asks for them: per client, and in all.
#: Clients take three at a time; three times as many connections are enough to be faster.
PREFETCHES_OF_CLIENT: Final = 6
PREFETCHES: Final = 18
#: How many requests of one kind may continue without a waiting client.
UNWANTED_QUESTIONS: Final = 8

#: The window of a throughput measurement: large enough that single pieces of 64 KiB do not matter.
_WINDOW_SECONDS: Final = 0.1
_WINDOW_BYTES: Final = 1024 * 1024
#: The least gain in throughput that justifies a step; for many connections, half their fair share.
_WORTH: Final = 0.15
#: If throughput never gets steady, it is judged after this many windows.
_PATIENCE_WINDOWS: Final = 10
#: A download that ends sooner than this needs no further connection.
_SOON_SECONDS: Final = 1.0
#: A further connection is of use if the fill waits for bytes at least for this share of the time.
#: Measured: 0.9 with an upstream of 250 MB/s, 0.1 where the fill's own work is the limit.
_WAITING_SHARE: Final = 0.5
#: The least size of a segment is 1/8 of the full size: segments get smaller towards the end, so
#: that all connections end together.
_LEAST_SHARE: Final = 8

_PROGRESS_BYTES: Final = 64 * 1024
_FIRST_DELAY_SECONDS: Final = 0.1
_MAX_DELAY_SECONDS: Final = 5.0
_MAX_FRUITLESS: Final = 6
_NEARLY_DONE: Final = 0.9


def visible_bytes(length: int, total: int | None) -> int:
    """Return how many bytes of a growing blob readers may have before the verification."""
    held_back_from = length if total is None else total
    return max(0, min(length, held_back_from - HOLD_BACK_BYTES))


def arrival_seconds(distance: int, grown: int, elapsed: float) -> float | None:
    """Estimate the seconds for ``distance`` more bytes, after ``grown`` in ``elapsed`` seconds.

    None if it is too early for an estimate.
    """
    if elapsed < PART_LOOK_SECONDS:
        return None
    return distance * elapsed / grown if grown > 0 else math.inf


def nearly_done(length: int, total: int | None) -> bool:
    """Return whether a fill without readers is so near its end that it should finish."""
    return total is not None and total - length <= min(
        UNWANTED_BYTES, int(total * (1 - _NEARLY_DONE))
    )


def usable_stale(seen: float, now: float, stale_if_error: float) -> bool:
    """Return whether an answer from ``seen`` may be served during an outage (RFC 5861, 4).

    Both times are Unix seconds, and the clock may have been set in between.  A ``seen`` too far in
    the future is refused too: otherwise the answer would be usable until the clock reaches it.
    """
    return abs(now - seen) <= stale_if_error


@dataclass(frozen=True, slots=True)
class Splitting:
    """Blobs of ``from_bytes`` and more may use several connections, each for a segment."""

    connections: int
    segment_bytes: int
    from_bytes: int

    @property
    def least_bytes(self) -> int:
        """The least size of a segment, except the last: each segment costs a request."""
        return self.segment_bytes // _LEAST_SHARE

    def segment(self, start: int, total: int, reach: int, connections: int) -> int | None:
        """Return the end of a segment that starts at ``start``, None if it cannot begin yet.

        ``reach`` is the limit for the end: bytes beyond it would take too much memory.
        """
        fair = max((total - start) // (2 * connections), self.least_bytes)
        stop = min(start + min(fair, self.segment_bytes), total, reach)
        if stop >= total > start:
            return total
        return stop if stop - start >= self.least_bytes else None


class Ramp:
    """The number of connections of one download: it grows while that makes the download faster.

    Each step doubles the number (four after two steps).  A step that gained too little is undone.
    There is no step while the fill itself is the limit, as with an upstream on the same network.
    After an error of a further connection, the number is 1 again.
    """

    def __init__(self, limit: int) -> None:
        self.wanted = 1
        self._limit = limit
        self._settled = limit == 1
        self._former, self._base = 1, 0.0
        self._since: float | None = None
        self._count = 0
        self._waited = 0.0
        self._rate = 0.0
        self._windows = 0

    def note(self, now: float, count: int, working: int, waited: float) -> None:
        """Record ``count`` new bytes at ``now``.

        ``working`` connections have delivered some.  ``waited``: the seconds in which the fill has
        waited for bytes since the download began.
        """
        if self._since is None:  # wait until the new connections have delivered their first bytes
            if working >= self.wanted:
                self._since, self._count, self._waited, self._windows = now, 0, waited, 0
            return
        self._count += count
        elapsed = now - self._since
        if elapsed >= _WINDOW_SECONDS and self._count >= _WINDOW_BYTES:
            last, self._rate = self._rate, self._count / elapsed
            share = (waited - self._waited) / elapsed
            self._since, self._count, self._waited = now, 0, waited
            self._windows += 1
            if not self._settled and self._telling(last):
                self._judge((last + self._rate) / 2, share)

    def retreat(self) -> None:
        """Use one connection from now on."""
        self.wanted, self._settled = 1, True

    def ends_soon(self, remaining: int) -> bool:
        """Whether ``remaining`` bytes are not worth another connection."""
        return remaining < self._rate * _SOON_SECONDS

    def _telling(self, last: float) -> bool:
        # TCP starts slowly and buffers fill at once: only a steady rate tells the effect of a step.
        steady = abs(self._rate - last) < _WORTH * last
        return self._windows > 1 and (steady or self._windows >= _PATIENCE_WINDOWS)

    def _judge(self, rate: float, waiting_share: float) -> None:
        worth = min(_WORTH, 0.5 / self._former)
        if self.wanted > self._former and rate < self._base * (1 + worth):
            self.wanted, self._settled = self._former, True
        elif self.wanted == self._limit:
            self._settled = True
        else:
            self._former, self._base = self.wanted, rate
            if waiting_share >= _WAITING_SHARE:
                self.wanted = min(self._limit, 2 * self.wanted)
                self._since = None


@dataclass(slots=True)
class Backoff:
    """Delays between attempts to resume at byte ``reached``; progress resets the delay."""

    reached: int = 0
    _fruitless: int = 0

    def next_delay(self, reached: int) -> float | None:
        """Return the seconds to wait after an attempt that ended at byte ``reached``.

        None: give up.
        """
        fruitful = reached - self.reached >= _PROGRESS_BYTES
        self.reached = reached
        self._fruitless = 0 if fruitful else self._fruitless + 1
        if self._fruitless >= _MAX_FRUITLESS:
            return None
        return min(_FIRST_DELAY_SECONDS * float(2**self._fruitless), _MAX_DELAY_SECONDS)
