"""The outcome of a request: one enum for metrics, log and Cache-Status."""

from enum import StrEnum


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
