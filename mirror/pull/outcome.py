"""The outcomes of pulls, and the errors that upstream itself does not report."""

from enum import StrEnum

from mirror.oci.digest import Digest
from mirror.upstream.errors import NonsenseError, UpstreamError


class Outcome(StrEnum):
    """The outcome of one request.

    ``HIT``: from the cache alone.  ``MISS``: fetched for this request.  ``COALESCED``: fetched for
    another request, which this one joined.  ``REVALIDATED``: from the cache, after upstream
    confirmed it.  ``STALE``: from the cache, because upstream could not answer.  ``NEGATIVE``:
    known to be missing.  ``DENIED`` and ``ERROR``: answers without content.
    """

    HIT = "hit"
    MISS = "miss"
    COALESCED = "coalesced"
    REVALIDATED = "revalidated"
    STALE = "stale"
    NEGATIVE = "negative"
    DENIED = "denied"
    ERROR = "error"


class DigestMismatchError(NonsenseError):
    """Upstream sent bytes that do not match the requested digest."""

    word = "digest_mismatch"
    transient = False


def wrong_bytes(repository: str, digest: Digest) -> str:
    """Return the message of a DigestMismatchError for content of a repository."""
    return f"sent bytes for {repository} that are not {digest}"


class OverloadedError(UpstreamError):
    """The mirror is at its limit of downloads; ``retry_after`` is in seconds from now."""

    word = "overloaded"

    def __init__(self, upstream: str, message: str, retry_after: float) -> None:
        super().__init__(upstream, message)
        self.retry_after = retry_after


class NotLeadingError(UpstreamError):
    """A blob is not downloaded by this replica, or comes from another one."""

    word = "not_leading"


class BrokenOffError(Exception):
    """A body cannot be completed; the client's connection must be reset."""
