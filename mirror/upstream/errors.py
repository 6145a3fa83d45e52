"""What can go wrong upstream, as values a caller can act on."""

from collections.abc import Sequence


class UpstreamError(Exception):
    """Upstream did not give what was asked.  The message is for people and holds no secret."""

    transient = False

    def __init__(self, upstream: str, message: str) -> None:
        super().__init__(f"{upstream}: {message}")
        self.upstream = upstream
        self.message = message


class NotFoundError(UpstreamError):
    """404: upstream has no such thing."""


class RefusedError(UpstreamError):
    """Upstream has something against who asks; ``challenges`` are its WWW-Authenticate fields."""

    def __init__(self, upstream: str, message: str, challenges: Sequence[str] = ()) -> None:
        super().__init__(upstream, message)
        self.challenges = tuple(challenges)


class UnauthorizedError(RefusedError):
    """401, also after a token was got: private, or (Docker Hub) not there at all."""


class DeniedError(RefusedError):
    """403."""


class RateLimitedError(UpstreamError):
    """429; ``retry_after`` is in seconds from now."""

    def __init__(self, upstream: str, message: str, retry_after: float) -> None:
        super().__init__(upstream, message)
        self.retry_after = retry_after


class UnavailableError(UpstreamError):
    """It cannot be reached, broke off, or answered 5xx or nonsense."""

    transient = True


class NonsenseError(UnavailableError):
    """It answered something else than what was asked for."""


class RangeRefusedError(UpstreamError):
    """416: what we hold of a blob is no prefix of what upstream has."""


class OversizedError(UpstreamError):
    """A blob has more bytes than the operator allows, or does not end."""


class TimedOutError(UpstreamError):
    """It was reached and then was too slow."""

    transient = True
