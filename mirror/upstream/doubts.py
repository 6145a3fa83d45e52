"""Remembers which mirrors of an upstream sent wrong content, so that they are asked last.

Knows mirrors by their position in the configuration.  Must not know the kinds of requests.
"""

import math
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Final

#: How long a mirror is asked last, in seconds.
_BEHIND_SECONDS: Final = 300.0
#: After this many failures within that time, a mirror is asked last for everything.
_FAILURES: Final = 3
_MOST_THINGS: Final = 10_000


class Doubts:
    """The failures of the mirrors of one upstream."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failed: OrderedDict[tuple[int, str], float] = OrderedDict()
        self._failures: dict[int, deque[float]] = {}
        self._gave: OrderedDict[str, set[int]] = OrderedDict()

    def is_behind(self, mirror: int, thing: str) -> bool:
        """Whether a mirror is asked for ``thing`` only after all the other addresses."""
        failures = self._failures.setdefault(mirror, deque(maxlen=_FAILURES))
        often = len(failures) == _FAILURES and self._is_recent(failures[0])
        return often or self._has_failed(mirror, thing)

    def gave(self, mirror: int, thing: str) -> None:
        """Note that a mirror answered; the bytes are verified later."""
        self._gave.setdefault(thing, set()).add(mirror)
        self._gave.move_to_end(thing)
        if len(self._gave) > _MOST_THINGS:
            self._gave.popitem(last=False)

    def failed(self, mirror: int, thing: str) -> None:
        """Note that a mirror answered with other content than ``thing``."""
        now = self._clock()
        self._failed[mirror, thing] = now
        self._failed.move_to_end((mirror, thing))
        if len(self._failed) > _MOST_THINGS:
            self._failed.popitem(last=False)
        self._failures.setdefault(mirror, deque(maxlen=_FAILURES)).append(now)

    def blame(self, thing: str) -> list[int]:
        """Note that ``thing`` has wrong content: ask all mirrors that sent a part of it last.

        Returns:
            the mirrors that had not failed for ``thing`` before.
        """
        blamed = self._gave.pop(thing, set())
        fresh = [mirror for mirror in blamed if not self._has_failed(mirror, thing)]
        for mirror in blamed:
            self.failed(mirror, thing)
        return fresh

    def _has_failed(self, mirror: int, thing: str) -> bool:
        return self._is_recent(self._failed.get((mirror, thing), -math.inf))

    def _is_recent(self, moment: float) -> bool:
        return moment > self._clock() - _BEHIND_SECONDS
