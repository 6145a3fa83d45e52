"""Troubles that last: one log line when a trouble begins, one when it ends, and a value to show."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Final

_QUIET_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True)
class Problem:
    """A trouble that lasts, in words for people; every visitor of the status page can read it.

    Times are Unix seconds.  ``since``: when it began; ``seen``: when it was met last; ``until``:
    the earliest time at which it can end, None if unknown.
    """

    title: str
    cause: str
    remedy: str
    until: float | None = None
    since: float = 0.0
    seen: float = 0.0


class Trouble:
    """Whether a trouble lasts, and whether the log says so.

    A trouble that comes and goes is logged once a minute at most.
    """

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._clock = clock
        self._wall_clock = wall_clock
        self._since: float | None = None
        self._logged = False
        self._quiet_until = 0.0
        self.problem: Problem | None = None

    def met(self, problem: Problem | None = None) -> bool:
        """Note that a request met the trouble; return whether to log that it began."""
        now = self._clock()
        if self._since is None:
            self._since = now
        if problem is not None:
            at = self._wall_clock()
            self.problem = replace(problem, since=at - (now - self._since), seen=at)
        if self._logged or now < self._quiet_until:
            return False
        self._logged = True
        self._quiet_until = now + _QUIET_SECONDS
        return True

    def over(self) -> float | None:
        """Note the end; return how many seconds the trouble lasted if that is to be logged."""
        since, self._since = self._since, None
        logged, self._logged = self._logged, False
        self.problem = None
        return self._clock() - since if logged and since is not None else None


def merged(problems: Iterable[Problem]) -> list[Problem]:
    """Return each problem once, the oldest first; several processes may meet the same one."""
    found: dict[str, Problem] = {}
    for each in sorted(problems, key=lambda problem: problem.seen):
        former = found.get(each.title, each)
        ends = [end for end in (former.until, each.until) if end is not None]
        since, until = min(former.since, each.since), max(ends, default=None)
        found[each.title] = replace(each, since=since, until=until)
    return sorted(found.values(), key=lambda problem: problem.since)
