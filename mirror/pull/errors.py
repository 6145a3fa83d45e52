"""Errors of pulls that upstream itself does not report."""

from mirror.upstream.errors import NonsenseError, UpstreamError


class DigestMismatchError(NonsenseError):
    """Upstream sent bytes that do not match the requested digest."""

    transient = False


class OverloadedError(UpstreamError):
    """The mirror is at its limit of downloads; ``retry_after`` is in seconds from now."""

    def __init__(self, upstream: str, message: str, retry_after: float) -> None:
        super().__init__(upstream, message)
        self.retry_after = retry_after


class BrokenOffError(Exception):
    """A body cannot be completed; the client's connection must be reset."""
