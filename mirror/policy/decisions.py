"""The outcomes of decisions, and the error for content that must not leave the mirror."""

from datetime import UTC, datetime
from enum import StrEnum


class Decision(StrEnum):
    """What a policy makes of one request."""

    BLOCKED = "blocked"  # recalled by the operator: refused
    PINNED = "pinned"  # the tag means another digest than upstream says


class PolicyError(Exception):
    """Content that must not leave the mirror; the message says why, and what to do."""

    def __init__(self, decision: Decision, message: str) -> None:
        super().__init__(message)
        self.decision = decision


def told_time(seconds: float) -> str:
    """Format Unix seconds for people, in UTC."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC")
