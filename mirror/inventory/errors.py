"""What keeps upkeep from being done."""


class UpkeepError(Exception):
    """It cannot be done; one line that says why and what to do."""
