"""The decisions that are numbers: pure, so that each is one line to read and to test."""

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
#: costs a system call per reader, and a crowd of them would starve the download they wait for.
WAKE_BYTES: Final = 1024 * 1024
WAKE_SECONDS: Final = 0.02

#: What passes through waits here for a client that may be slow; there may be a thousand of them.
PASSING_BUFFER_BYTES: Final = 64 * 1024

#: How long a fill goes on that nobody wants any more, in seconds.
UNWANTED_SECONDS: Final = 3.0

_PROGRESS_BYTES: Final = 64 * 1024
_FIRST_DELAY_SECONDS: Final = 0.1
_MAX_DELAY_SECONDS: Final = 5.0
_MAX_FRUITLESS: Final = 6
_NEARLY_DONE: Final = 0.75


def visible_bytes(length: int, total: int | None) -> int:
    """How much of a growing blob its readers may have before it is verified."""
    held_back_from = length if total is None else total
    return max(0, min(length, held_back_from - HOLD_BACK_BYTES))


def nearly_done(length: int, total: int | None) -> bool:
    """Whether a fill that nobody wants any more is better finished than left."""
    return total is not None and length >= total * _NEARLY_DONE


def usable_stale(seen: float, now: float, stale_if_error: float) -> bool:
    """Whether what upstream said at ``seen`` may be served while it cannot answer (RFC 5861, 4)."""
    return now - seen <= stale_if_error


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
