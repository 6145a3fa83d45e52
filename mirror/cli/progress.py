"""Progress of a command: a bar on a terminal, a line at intervals in a log."""

import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

from rich.console import Console
from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

_LINE_SECONDS: Final = 10.0


class ByteProgress:
    """Progress in bytes, on standard error."""

    def __init__(self, what: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._what = what
        self._clock = clock
        self._total = self._done = 0
        self._told = clock()
        console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._lines = not console.is_terminal
        self._task = self._bar.add_task(what, total=None)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def expect(self, total: int) -> None:
        """Set the total in bytes."""
        self._total = total
        self._bar.update(self._task, total=total)

    def advance(self, size: int) -> None:
        """Add ``size`` bytes."""
        self._done += size
        self._bar.advance(self._task, size)
        if self._lines and self._clock() - self._told >= _LINE_SECONDS:
            self._told = self._clock()
            done, total = decimal(self._done), decimal(self._total)
            print(f"{self._what}: {done} of {total}", file=sys.stderr, flush=True)
