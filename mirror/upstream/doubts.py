"""Mirrors of an upstream that sent something else than what was asked for: they are asked last.

Knows addresses by their place in the configuration.  Must not know what is asked of them.
"""

import math
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Final

#: How long a mirror is asked last, in seconds.
_BEHIND_SECONDS: Final = 300.0
#: So many failures within that time put a mirror behind for everything.
_FAILURES: Final = 3
_MOST_THINGS: Final = 10_000


class Doubts:
    """What the mirrors of one upstream failed to give."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failed: OrderedDict[tuple[int, str], float] = OrderedDict()
        self._failures: dict[int, deque[float]] = {}
        self._gave: OrderedDict[str, set[int]] = OrderedDict()

    def is_behind(self, mirror: int, thing: str) -> bool:
        """Whether a mirror is asked for ``thing`` only after all other addresses."""
        failures = self._failures.setdefault(mirror, deque(maxlen=_FAILURES))
        often = len(failures) == _FAILURES and self._is_recent(failures[0])
        return often or self._has_failed(mirror, thing)

    def gave(self, mirror: int, thing: str) -> None:
        """A mirror answered; whether with the right bytes is seen later."""
        self._gave.setdefault(thing, set()).add(mirror)
        self._gave.move_to_end(thing)
        if len(self._gave) > _MOST_THINGS:
            self._gave.popitem(last=False)

    def failed(self, mirror: int, thing: str) -> None:
        """A mirror answered with something else than ``thing``."""
        now = self._clock()
        self._failed[mirror, thing] = now
        self._failed.move_to_end((mirror, thing))
        if len(self._failed) > _MOST_THINGS:
            self._failed.popitem(last=False)
        self._failures.setdefault(mirror, deque(maxlen=_FAILURES)).append(now)

    def blame(self, thing: str) -> list[int]:
        """What came of ``thing`` is wrong: put all mirrors behind that gave some of it.

        Returns:
            those that had not failed to give it before.
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
