"""What keeps an image from being pulled."""


class PullError(Exception):
    """An image, or a part of it, cannot be had; one line that says why."""


class ErrorAnswerError(PullError):
    """The mirror answered with an error; ``retry_after`` in seconds where it said when to come."""

    def __init__(self, message: str, status: int, retry_after: float | None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after


class BrokenOffError(PullError):
    """A body ended before its end."""
