"""The error of this package."""


class TunnelError(Exception):
    """A CONNECT fails: the HTTP status of the answer, and one line that says what to change."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
