"""The decisions that are numbers: pure, so that each is one line to read and to test."""

import math
from dataclasses import dataclass
from typing import Final

#: Bytes given to nobody before the digest is verified: enough that no client can mistake what
#: it has for the whole, little enough that nobody notices the wait.
HOLD_BACK_BYTES: Final = 64 * 1024

#: How far a fill of unknown size may grow before it asks for room again.
GROWTH_STEP_BYTES: Final = 16 * 1024 * 1024

#: How much is collected while the disk is busy with the piece before.
BATCH_BYTES: Final = 1024 * 1024

#: Readers of a growing blob are woken when this much is new, or after this long: each wake-up
#: costs a thread's turn per reader, and a crowd of them would starve the download they wait for.
#: (A MiB instead costs 16 readers of a GiB half a second of CPU, one of them a tenth of all.)
WAKE_BYTES: Final = 4 * 1024 * 1024
WAKE_SECONDS: Final = 0.02

#: What passes through waits here for a client that may be slow; there may be a thousand of them.
PASSING_BUFFER_BYTES: Final = 64 * 1024

#: A part waits so long, in seconds, for its bytes and for the verification of the whole blob; where
#: that takes longer it is relayed as upstream sends it.
PART_PATIENCE_SECONDS: Final = 1.0
#: So long a fill is watched before anything is said about how fast it is.
PART_LOOK_SECONDS: Final = 0.25
#: What is fetched ahead of a fill comes in pieces of this size, which wait in memory.
AHEAD_PIECE_BYTES: Final = 1024 * 1024
#: What is fetched ahead of a fill may cost upstream this share of the blob, on top of it.
AHEAD_SHARE: Final = 0.04

#: How long a fill or a question goes on that no client waits for, in seconds: time enough for a
#: client to come back after a broken connection or a time-out of its own.
UNWANTED_SECONDS: Final = 3.0
#: How many bytes a fill without readers may still bring.
UNWANTED_BYTES: Final = 8 * 1024 * 1024
#: How many fills go on without readers, of those that one client has left and in all.
UNWANTED_FILLS_OF_CLIENT: Final = 3
UNWANTED_FILLS: Final = 12
#: How many questions of one kind go on that no client waits for.
UNWANTED_QUESTIONS: Final = 8

#: A window in which throughput is measured: long enough that pieces of 64 KiB do not matter.
_WINDOW_SECONDS: Final = 0.1
_WINDOW_BYTES: Final = 1024 * 1024
#: What further connections must add to be kept; of many, half of what would be their share.
_WORTH: Final = 0.15
#: A line that never gets steady is judged all the same after so many windows.
_PATIENCE_WINDOWS: Final = 10
#: Who is done sooner than this, in seconds, needs no further connection.
_SOON_SECONDS: Final = 1.0
#: Segments get smaller towards the end, so that all connections end together.
_LEAST_SHARE: Final = 8

_PROGRESS_BYTES: Final = 64 * 1024
_FIRST_DELAY_SECONDS: Final = 0.1
_MAX_DELAY_SECONDS: Final = 5.0
_MAX_FRUITLESS: Final = 6
_NEARLY_DONE: Final = 0.9


def visible_bytes(length: int, total: int | None) -> int:
    """How much of a growing blob its readers may have before it is verified."""
    held_back_from = length if total is None else total
    return max(0, min(length, held_back_from - HOLD_BACK_BYTES))


def arrival_seconds(distance: int, grown: int, elapsed: float) -> float | None:
    """How long ``distance`` further bytes take, after ``grown`` in ``elapsed`` seconds.

    None while it is too early to tell.
    """
    if elapsed < PART_LOOK_SECONDS:
        return None
    return distance * elapsed / grown if grown > 0 else math.inf


def ahead_allowance(total: int, share: float) -> int:
    """How many bytes of a blob may be fetched ahead of its fill, in all."""
    return int(total * share)


def nearly_done(length: int, total: int | None) -> bool:
    """Whether a fill without readers is better finished than left."""
    return total is not None and total - length <= min(
        UNWANTED_BYTES, int(total * (1 - _NEARLY_DONE))
    )


def usable_stale(seen: float, now: float, stale_if_error: float) -> bool:
    """Whether what upstream said at ``seen`` may be served while it cannot answer (RFC 5861, 4).

    Both are readings of a clock that may have been set in between.  A time in the future says as
    little as one in the past: without the bound it would hold until the clock comes there.
    """
    return abs(now - seen) <= stale_if_error


@dataclass(frozen=True, slots=True)
class Splitting:
    """A blob of ``from_bytes`` and more may come over several connections, a segment each."""

    connections: int
    segment_bytes: int
    from_bytes: int

    @property
    def least_bytes(self) -> int:
        """No segment is smaller, but for the last: each costs a request."""
        return self.segment_bytes // _LEAST_SHARE

    def segment(self, start: int, total: int, reach: int, connections: int) -> int | None:
        """Where a segment from ``start`` on ends, None if it cannot begin yet.

        ``reach``: what lies behind it would be too much for memory.
        """
        fair = max((total - start) // (2 * connections), self.least_bytes)
        stop = min(start + min(fair, self.segment_bytes), total, reach)
        if stop >= total > start:
            return total
        return stop if stop - start >= self.least_bytes else None


class Ramp:
    """How many connections one download should have: more as long as that makes it faster.

    Each step doubles them (four are reached after two looks); the step that brought too little
    is taken back, and so is everything when upstream minds.
    """

    def __init__(self, limit: int) -> None:
        self.wanted = 1
        self._limit = limit
        self._settled = limit == 1
        self._former, self._base = 1, 0.0
        self._since: float | None = None
        self._count = 0
        self._rate = 0.0
        self._windows = 0

    def note(self, now: float, count: int, working: int) -> None:
        """``count`` more bytes arrived at ``now``; ``working`` connections have given some."""
        if self._since is None:  # who has just been asked needs a moment to begin
            if working >= self.wanted:
                self._since, self._count, self._windows = now, 0, 0
            return
        self._count += count
        elapsed = now - self._since
        if elapsed >= _WINDOW_SECONDS and self._count >= _WINDOW_BYTES:
            last, self._rate = self._rate, self._count / elapsed
            self._since, self._count = now, 0
            self._windows += 1
            if not self._settled and self._telling(last):
                self._judge((last + self._rate) / 2)

    def retreat(self) -> None:
        """One connection from now on."""
        self.wanted, self._settled = 1, True

    def ends_soon(self, remaining: int) -> bool:
        """Whether ``remaining`` bytes are not worth another connection."""
        return remaining < self._rate * _SOON_SECONDS

    def _telling(self, last: float) -> bool:
        # TCP starts slowly, buffers fill at once: what changes by itself says nothing yet.
        steady = abs(self._rate - last) < _WORTH * last
        return self._windows > 1 and (steady or self._windows >= _PATIENCE_WINDOWS)

    def _judge(self, rate: float) -> None:
        worth = min(_WORTH, 0.5 / self._former)
        if self.wanted > self._former and rate < self._base * (1 + worth):
            self.wanted, self._settled = self._former, True
        elif self.wanted == self._limit:
            self._settled = True
        else:
            self._former, self._base = self.wanted, rate
            self.wanted = min(self._limit, 2 * self.wanted)
            self._since = None


@dataclass(slots=True)
class Backoff:
    """Delays between attempts to go on from byte ``reached``; fruitful ones do not count."""

    reached: int = 0
    _fruitless: int = 0

    def next_delay(self, reached: int) -> float | None:
        """Seconds to wait after an attempt that ended at byte ``reached``; None: give up."""
        fruitful = reached - self.reached >= _PROGRESS_BYTES
        self.reached = reached
        self._fruitless = 0 if fruitful else self._fruitless + 1
        if self._fruitless >= _MAX_FRUITLESS:
            return None
        return min(_FIRST_DELAY_SECONDS * float(2**self._fruitless), _MAX_DELAY_SECONDS)
