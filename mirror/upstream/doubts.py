"""Remembers which mirrors of an upstream sent wrong content, so that they are asked last.

Knows mirrors by their position in the configuration.  Must not know the kinds of requests.
"""

import time
from collections import deque
from collections.abc import Callable
from typing import Final

from mirror.lru import Lru

#: How long a mirror is asked last, in seconds.
_BEHIND_SECONDS: Final = 300.0
#: After this many failures within that time, a mirror is asked last for everything.
_FAILURES: Final = 3
_MOST_THINGS: Final = 10_000


class Doubts:
    """The failures of the mirrors of one upstream."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failed: Lru[tuple[int, str], float] = Lru(_MOST_THINGS)
        self._failures: dict[int, deque[float]] = {}
        self._gave: Lru[str, set[int]] = Lru(_MOST_THINGS)

    def is_behind(self, mirror: int, thing: str) -> bool:
        """Whether a mirror is asked for ``thing`` only after all the other addresses."""
        failures = self._failures.setdefault(mirror, deque(maxlen=_FAILURES))
        often = len(failures) == _FAILURES and self._is_recent(failures[0])
        return often or self._has_failed(mirror, thing)

    def gave(self, mirror: int, thing: str) -> None:
        """Note that a mirror answered; the bytes are verified later."""
        self._gave.put(thing, (self._gave.get(thing) or set()) | {mirror})

    def failed(self, mirror: int, thing: str) -> None:
        """Note that a mirror answered with other content than ``thing``."""
        now = self._clock()
        self._failed.put((mirror, thing), now)
        self._failures.setdefault(mirror, deque(maxlen=_FAILURES)).append(now)

    def blame(self, thing: str) -> list[int]:
        """Note that ``thing`` has wrong content: ask all mirrors that sent a part of it last.

        Returns:
            the mirrors that had not failed for ``thing`` before.
        """
        blamed = self._gave.pop(thing) or set()
        fresh = [mirror for mirror in blamed if not self._has_failed(mirror, thing)]
        for mirror in blamed:
            self.failed(mirror, thing)
        return fresh

    def _has_failed(self, mirror: int, thing: str) -> bool:
        failed = self._failed.get((mirror, thing))
        return failed is not None and self._is_recent(failed)

    def _is_recent(self, moment: float) -> bool:
        return moment > self._clock() - _BEHIND_SECONDS
