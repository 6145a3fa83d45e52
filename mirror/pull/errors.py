"""What can go wrong between cache and upstream, beyond what upstream itself reports."""

from mirror.upstream.errors import UpstreamError


class DigestMismatchError(UpstreamError):
    """Upstream sent bytes that do not hash to the digest they were asked by."""


class BrokenOffError(Exception):
    """A body cannot be finished; its connection has to be reset."""
