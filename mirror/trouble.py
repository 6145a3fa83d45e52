"""Troubles that last: one log line when a trouble begins, and one when it ends."""

import time
from collections.abc import Callable
from typing import Final

_QUIET_SECONDS: Final = 60.0


class Trouble:
    """Whether a trouble lasts, and whether the log says so.

    A trouble that comes and goes is logged once a minute at most.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since: float | None = None
        self._logged = False
        self._quiet_until = 0.0

    def met(self) -> bool:
        """Note that a request met the trouble; return whether to log that it began."""
        now = self._clock()
        if self._since is None:
            self._since = now
        if self._logged or now < self._quiet_until:
            return False
        self._logged = True
        self._quiet_until = now + _QUIET_SECONDS
        return True

    def over(self) -> float | None:
        """Note the end; return how many seconds the trouble lasted if that is to be logged."""
        since, self._since = self._since, None
        logged, self._logged = self._logged, False
        return self._clock() - since if logged and since is not None else None
