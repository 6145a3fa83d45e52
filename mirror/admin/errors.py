"""What keeps a command from being done."""


class OperateError(Exception):
    """It cannot be done; one line that says why and what to do."""
