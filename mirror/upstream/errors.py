"""Errors of an upstream, one class for each way to handle them."""

from collections.abc import Sequence


class UpstreamError(Exception):
    """Upstream did not answer a request as asked.  The message contains no secret."""

    transient = False
    by_status = False
    """Whether upstream answered with an error status: another method may have another answer."""

    def __init__(self, upstream: str, message: str) -> None:
        super().__init__(f"{upstream}: {message}")
        self.upstream = upstream
        self.message = message


class NotFoundError(UpstreamError):
    """404: upstream does not have it."""

    by_status = True


class RefusedError(UpstreamError):
    """Upstream refuses this client; ``challenges`` are the WWW-Authenticate fields."""

    by_status = True

    def __init__(self, upstream: str, message: str, challenges: Sequence[str] = ()) -> None:
        super().__init__(upstream, message)
        self.challenges = tuple(challenges)


class UnauthorizedError(RefusedError):
    """401, also with a token: the repository is private or (Docker Hub) does not exist."""


class LoginRefusedError(UnauthorizedError):
    """Upstream refuses the mirror's own user and password: other clients are not at fault."""

    by_status = False


class DeniedError(RefusedError):
    """403."""


class RateLimitedError(UpstreamError):
    """429; ``retry_after`` is in seconds from now."""

    def __init__(self, upstream: str, message: str, retry_after: float) -> None:
        super().__init__(upstream, message)
        self.retry_after = retry_after


class RejectedError(UpstreamError):
    """400, 402, 410, 413 or 451; ``code`` is that of upstream's error body, empty without one."""

    by_status = True

    def __init__(self, upstream: str, message: str, status: int, code: str = "") -> None:
        super().__init__(upstream, message)
        self.status = status
        self.code = code


class UnavailableError(UpstreamError):
    """Upstream cannot be reached, broke off, or answered 5xx or nonsense."""

    transient = True


class NonsenseError(UnavailableError):
    """Upstream answered with content that does not match the request."""


class OversizedAnswerError(NonsenseError):
    """Upstream answered with a body that is too large to hold in memory."""


class RedirectError(UnavailableError):
    """Upstream redirects to an address that the mirror does not follow."""


class RangeRefusedError(UpstreamError):
    """416: the stored part of a blob is not a prefix of the blob at upstream."""


class OversizedError(UpstreamError):
    """A blob is larger than ``[fetch] max_blob_size``, or does not end."""


class TimedOutError(UpstreamError):
    """Upstream was reached and then was too slow."""

    transient = True
