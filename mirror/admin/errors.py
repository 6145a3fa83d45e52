"""The error of a failed command."""


class OperateError(Exception):
    """The command failed; the message is one line with the cause and what to do."""
