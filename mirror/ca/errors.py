"""The error of this package."""


class AuthorityError(Exception):
    """The CA cannot be used; the message is one line that says why and what to do."""
