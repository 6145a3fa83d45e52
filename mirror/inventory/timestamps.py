"""Timestamps in machine-readable form."""

from datetime import UTC, datetime


def rfc3339(seconds: float) -> str:
    """Format Unix seconds as RFC 3339, in UTC, rounded down to the second."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
