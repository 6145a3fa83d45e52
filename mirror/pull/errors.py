"""What can go wrong between cache and upstream, beyond what upstream itself reports."""

from mirror.upstream.errors import NonsenseError, UpstreamError


class DigestMismatchError(NonsenseError):
    """Upstream sent bytes that do not hash to the digest they were asked by."""

    transient = False


class OverloadedError(UpstreamError):
    """The mirror downloads as much as it may; ``retry_after`` is in seconds from now."""

    def __init__(self, upstream: str, message: str, retry_after: float) -> None:
        super().__init__(upstream, message)
        self.retry_after = retry_after


class BrokenOffError(Exception):
    """A body cannot be finished; its connection has to be reset."""
