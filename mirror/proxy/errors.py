"""What keeps a client from being let through."""


class TunnelError(Exception):
    """The answer to a CONNECT that fails: a status, and one line that says what to change."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
