"""Mistakes in a configuration, told all at once."""


class ConfigError(Exception):
    """A configuration that cannot be used; each of ``problems`` is one line for its author."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems
