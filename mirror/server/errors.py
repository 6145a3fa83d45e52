"""The error of a failed start."""


class StartError(Exception):
    """The mirror cannot start; the message is one line with the cause and what to do."""
