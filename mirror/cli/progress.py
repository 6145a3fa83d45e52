"""Progress of a command: bars on a terminal, a line at intervals in a log.

For several images there is one bar for each active image, one for the total, and a line for each
image that has ended.  Bytes found in the cache count for the bar, and not for the rate.
"""

import sys
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, ProgressColumn, Task, TaskID
from rich.table import Column
from rich.text import Text

from mirror.ui.formatting import plain_size as size_text

if TYPE_CHECKING:
    from mirror.registry_client.pull import Pulled, Wanted

_LINE_SECONDS: Final = 10.0
_RATE_SECONDS: Final = 10.0
_LEAST_SECONDS: Final = 0.5


class Rate:
    """Bytes per second, over the last ten seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._began: float | None = None
        self._seen: deque[tuple[float, int]] = deque()
        self._sum = 0

    def add(self, size: int) -> None:
        if self._began is None:  # earlier time was not spent downloading
            self._began = self._clock()
        self._seen.append((self._clock(), size))
        self._sum += size

    def now(self) -> float:
        now = self._clock()
        while self._seen and self._seen[0][0] < now - _RATE_SECONDS:
            self._sum -= self._seen.popleft()[1]
        elapsed = 0.0 if self._began is None else now - self._began
        return self._sum / min(max(elapsed, _LEAST_SECONDS), _RATE_SECONDS)

    def left(self, size: int) -> str:
        """The time for ``size`` more bytes, as text; empty if the rate is unknown."""
        rate = self.now()
        return _spoken(size / rate) if rate else ""


class _NameColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        """The name as the user typed it, without markup."""
        return Text(task.description, no_wrap=True, overflow="ellipsis")


class _RateColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        """Rate from upstream, and remaining time."""
        rate: Rate = task.fields["rate"]
        now = rate.now()
        left = rate.left(int((task.total or 0) - task.completed))
        return Text(f"{size_text(int(now))}/s {left}" if now and not task.finished else "")


class _Bars:
    """A bar for the total, and what a log needs instead of it."""

    def __init__(self, what: str, clock: Callable[[], float], *, transient: bool = False) -> None:
        self._clock = clock
        self._bytes = self._done = 0
        self._rate = Rate(clock)
        self._told = clock()
        console = Console(stderr=True, highlight=False)
        self._terminal = console.is_terminal
        self._progress = Progress(
            _NameColumn(table_column=Column(ratio=2, no_wrap=True, overflow="ellipsis")),
            BarColumn(bar_width=None, table_column=Column(ratio=1, min_width=10)),
            DownloadColumn(binary_units=True, table_column=Column(no_wrap=True)),
            _RateColumn(table_column=Column(no_wrap=True, min_width=16)),
            console=console,
            expand=True,
            transient=transient,
            disable=not self._terminal,
        )
        self._total = self._progress.add_task(what, total=None, rate=self._rate)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def expect(self, size: int) -> None:
        """Add to the total in bytes."""
        self._bytes += size
        self._progress.update(self._total, total=self._bytes)

    def advance(self, size: int, *, fetched: bool = True) -> None:
        """Add bytes, those found in the cache too; the latter are not ``fetched``."""
        self._done += size
        if fetched:
            self._rate.add(size)
        self._progress.advance(self._total, size)
        if not self._terminal and self._clock() - self._told >= _LINE_SECONDS:
            self._tell(self._line())

    def _line(self) -> str:
        return f"{size_text(self._done)} of {size_text(self._bytes)}"

    def _tell(self, line: str) -> None:
        self._told = self._clock()
        if self._terminal:
            self._progress.console.print(line, markup=False, soft_wrap=True)
        else:
            print(line, file=sys.stderr, flush=True)


class ByteProgress(_Bars):
    """Shows the progress of one task in bytes, on standard error."""

    def __init__(self, what: str, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(what, clock)
        self._what = what

    def _line(self) -> str:
        return f"{self._what}: {super()._line()}"


class ImagesProgress(_Bars):
    """Shows the progress of a puller on standard error."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._count = self._ended = 0
        super().__init__(self._all(), clock, transient=True)
        self._tasks: dict[Wanted, TaskID] = {}
        self._rates: dict[Wanted, Rate] = {}
        self._sizes: dict[Wanted, int] = {}

    def expected(self, images: int) -> None:
        self._count = images
        self._progress.update(self._total, description=self._all())

    def planned(self, wanted: "Wanted", size: int) -> None:
        """Add the size of an image to the total."""
        self._sizes[wanted] = size
        self.expect(size)

    def began(self, wanted: "Wanted") -> None:
        """Add a bar for the image, below the total."""
        rate = self._rates[wanted] = Rate(self._clock)
        task = self._progress.add_task(wanted.typed, total=self._sizes[wanted], rate=rate)
        self._tasks[wanted] = task

    def came(self, wanted: "Wanted", size: int, *, fetched: bool) -> None:
        """Advance the image by ``size`` bytes."""
        if fetched:
            self._rates[wanted].add(size)
        self._progress.advance(self._tasks[wanted], size)
        self.advance(size, fetched=fetched)

    def ended(self, pulled: "Pulled") -> None:
        """Replace the bar of the image with a line."""
        self._ended += 1
        task = self._tasks.pop(pulled.wanted, None)
        if task is not None:
            self._progress.remove_task(task)
        self._progress.update(self._total, description=self._all())
        self._tell(described(pulled))

    def _all(self) -> str:
        return f"{self._ended} of {self._count} image{'' if self._count == 1 else 's'}"

    def _line(self) -> str:
        left = self._rate.left(self._bytes - self._done)
        more = f", {left} left" if left else ""
        return f"{self._all()}, {super()._line()}, {size_text(int(self._rate.now()))}/s{more}"


def described(pulled: "Pulled") -> str:
    """The result of one image, as one line."""
    name = pulled.wanted.typed
    if pulled.reason:
        return f"{name}: failed: {pulled.reason}"
    size = size_text(pulled.plan.blob_bytes if pulled.plan else 0)
    came = f"{size_text(pulled.fetched)} fetched" if pulled.fetched else "all of it was cached"
    stale = pulled.plan is not None and pulled.plan.stale
    return f"{name}: {size}, {came}{', stale: upstream does not answer' if stale else ''}"


def _spoken(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
