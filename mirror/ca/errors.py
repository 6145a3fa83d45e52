"""Why the authority cannot be used."""


class AuthorityError(Exception):
    """The authority cannot be used: one line that says why and what to do."""
