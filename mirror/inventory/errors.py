"""Errors of cache operations."""


class UpkeepError(Exception):
    """An operation failed; the message is one line with the cause and the remedy."""
