"""What keeps the mirror from starting."""


class StartError(Exception):
    """The mirror cannot start; one line that says why and what to do."""
