"""Errors of pulls."""


class PullError(Exception):
    """An image, or a part of it, is not available; the message is one line with the reason."""


class ErrorAnswerError(PullError):
    """The mirror answered with an error; ``retry_after`` is its Retry-After in seconds, if any."""

    def __init__(self, message: str, status: int, retry_after: float | None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after


class BrokenOffError(PullError):
    """A body ended early."""
