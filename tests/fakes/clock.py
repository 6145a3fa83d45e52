"""A clock for policies that the test sets."""

from dataclasses import dataclass, replace

from mirror.policy.rules import Moment

_START = Moment(1_800_000_000.0, "first", 1000.0)


@dataclass
class Clock:
    """The time of the wall, and of the machine, which runs on unless ``boot`` changes."""

    now: Moment = _START

    def __call__(self) -> Moment:
        return self.now

    def pass_by(self, seconds: float) -> None:
        self.now = replace(self.now, wall=self.now.wall + seconds, steady=self.now.steady + seconds)
