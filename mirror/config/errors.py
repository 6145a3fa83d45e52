"""The error for mistakes in a configuration, all of them at once."""


class ConfigError(Exception):
    """The configuration is invalid; each of ``problems`` is a message of one line."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems
