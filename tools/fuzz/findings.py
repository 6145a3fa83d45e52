"""The result of a fuzz program: number of cases, and findings."""

import gc
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from mirror.logs import JsonFormatter, TextFormatter


@dataclass(frozen=True)
class Finding:
    """An input with a wrong result; ``case`` is a Python literal."""

    case: str
    why: str


@dataclass
class Report:
    """The run of one target."""

    name: str
    cases: int = 0
    findings: list[Finding] = field(default_factory=list)

    def line(self) -> str:
        return f"{self.name:<28} {self.cases:>9} cases {len(self.findings):>3} findings"


class _Listener(logging.Handler):
    """Formats every record like the product does, and keeps the errors."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.errors: list[str] = []
        self._formatters = (JsonFormatter(), TextFormatter())

    def emit(self, record: logging.LogRecord) -> None:
        try:
            lines = [formatter.format(record) for formatter in self._formatters]
            "".join(lines).encode()
        except Exception as error:
            self.errors.append(f"a log record cannot be written: {error!r} {record.msg!r}")
            return
        if record.levelno >= logging.ERROR or "Unhandled" in lines[-1]:
            self.errors.append(lines[-1])


@contextmanager
def listening() -> Iterator[list[str]]:
    """Collect errors logged in the context, including those of tasks that were never awaited."""
    listener, root = _Listener(), logging.getLogger()
    level = root.level
    root.addHandler(listener)
    root.setLevel(logging.INFO)
    try:
        yield listener.errors
        gc.collect()  # asyncio reports unretrieved exceptions only on collection
    finally:
        root.setLevel(level)
        root.removeHandler(listener)
