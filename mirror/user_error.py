"""The error that ends a command, and the exit codes of all commands."""

from enum import IntEnum


class ExitCode(IntEnum):
    """How a command ends if not with 0; ``docs/operations.md`` explains each code."""

    FAILED = 1
    USAGE = 2  # a mistake on the command line or in the configuration
    INTERRUPTED = 130  # the exit status of shells after Ctrl-C


class UserError(Exception):
    """Work cannot start or continue: one plain line per cause, with what to do about it.

    Any package raises it, and the root of the command line prints it.  In between, only code that
    goes on without that work catches it: a reload, a worker, a request.
    """

    def __init__(self, message: str, code: ExitCode = ExitCode.FAILED) -> None:
        super().__init__(message)
        self.code = code

    @property
    def lines(self) -> list[str]:
        return str(self).splitlines()
