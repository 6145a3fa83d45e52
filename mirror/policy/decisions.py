"""The outcomes of decisions, and the error for content that must not leave the mirror."""

from datetime import UTC, datetime
from enum import StrEnum


class Decision(StrEnum):
    """What a policy makes of one request."""

    ALLOWED = "allowed"  # a rule lets upstream's digest pass
    HELD = "held"  # too new: the tag means its former digest, or is refused
    UNSIGNED = "unsigned"  # no signature satisfies the rule: refused
    AUDITED = "audited"  # served, although a rule would not
    BLOCKED = "blocked"  # recalled by the operator: refused
    PINNED = "pinned"  # the tag means another digest than upstream says


class PolicyError(Exception):
    """Content that must not leave the mirror; the message says why, and what to do.

    ``passing``: the decision could not be made now.
    """

    def __init__(self, decision: Decision, message: str, *, passing: bool = False) -> None:
        super().__init__(message)
        self.decision = decision
        self.passing = passing


_UNITS = (("d", 86400.0), ("h", 3600.0), ("min", 60.0))


def told_span(seconds: float) -> str:
    """Format a time span for people, in the largest unit that fits."""
    for unit, length in _UNITS:
        if seconds >= length:
            number = seconds / length
            return f"{number:.3g} {unit}" if number < 100 else f"{number:.0f} {unit}"
    return f"{seconds:.0f} s"


def told_time(seconds: float) -> str:
    """Format Unix seconds for people, in UTC."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
