"""The queue of log records and printed lines, and the thread that writes it.

A serving process logs through :class:`QueuedOutput`.  Only its thread waits for the reader of
standard error, so a full pipe costs log records but never delays a request.
"""

import contextlib
import io
import logging
import os
import select
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from queue import Empty, SimpleQueue
from typing import Final, NamedTuple, Protocol

from mirror.logs.formats import JsonFormatter, TextFormatter, traceback_of

_STDOUT: Final = 1
_STDERR: Final = 2
_CLOSED: Final = -1  # the process was started without this stream

_MOST_BYTES: Final = 8 * 1024 * 1024
_RECORD_BYTES: Final = 2 * 1024  # of a record, without its message and traceback
_MOST_TEXT: Final = 16 * 1024  # characters of one message, traceback or printed line
_BATCH: Final = 256
_PAUSE_SECONDS: Final = 0.02  # between two batches: waking the thread for each record costs more
_DRAIN_SECONDS: Final = 1.0

_log = logging.getLogger(__name__)
#: The logger of the lines about one request or one pull each.
ACCESS: Final = "mirror.access"


def configure(level: str, form: str, *, access: bool) -> None:
    """Send the log to standard error, through the queue if :func:`queue_output` made one."""
    root = logging.getLogger()
    handler: logging.Handler = queued() or logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if form == "json" else TextFormatter.of(_STDERR))
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    failures = max(root.level, logging.WARNING)  # always logged
    logging.getLogger(ACCESS).setLevel(logging.NOTSET if access else failures)


def is_json() -> bool:
    """Whether the log is for machines."""
    return any(isinstance(each.formatter, JsonFormatter) for each in logging.root.handlers)


def queue_output() -> "QueuedOutput":
    """Queue all that this process logs and prints; a forked process must call this again.

    ``print``, warnings and tracebacks of threads are queued too, since ``sys.stdout`` and
    ``sys.stderr`` are replaced.
    """
    stdout = _CLOSED if sys.__stdout__ is None else _STDOUT
    stderr = _CLOSED if sys.__stderr__ is None else _STDERR
    output = QueuedOutput(stderr)
    logging.getLogger().handlers[:] = [output]
    sys.stdout, sys.stderr = _Stream(output, stdout), _Stream(output, stderr)
    return output


def dropped() -> int:
    """The number of log records and printed lines dropped since the start of this process."""
    output = queued()
    return 0 if output is None else output.dropped


def queued() -> "QueuedOutput | None":
    """Return the queue of this process, None if :func:`queue_output` made none."""
    for handler in logging.root.handlers:
        if isinstance(handler, QueuedOutput):
            return handler
    return None


@dataclass(frozen=True, slots=True)
class _Gap:
    """A gap of ``count`` dropped records, the first one at ``since`` (Unix seconds)."""

    count: int
    since: float

    def record(self) -> logging.LogRecord:
        since = datetime.fromtimestamp(self.since, UTC).isoformat(timespec="seconds")
        text = "%d log records dropped since %s: standard error was full, or failed"
        told = (self.count, since.replace("+00:00", "Z"))
        return _log.makeRecord(__name__, logging.WARNING, __file__, 0, text, told, None)


class Lines(Protocol):
    """Lines that are formatted by the thread that writes them."""

    def text(self, formatter: JsonFormatter | TextFormatter) -> str:
        """Return the lines, each with its end; maybe none."""


class _Item(NamedTuple):
    """A record or text for the descriptor ``fd``; it counts as ``size`` bytes in the queue."""

    fd: int
    size: int
    what: logging.LogRecord | Lines | _Gap | str


class QueuedOutput(logging.Handler):
    """A bounded queue of log records and printed lines, and the thread that writes them.

    A full queue drops records until it is half empty, so that one log line reports many of them.
    """

    def __init__(self, stderr: int) -> None:
        """Start the thread; log records go to the descriptor ``stderr``."""
        super().__init__()
        #: Takes a record to another process that logs it; False: this process has to.
        self.hand_on: Callable[[logging.LogRecord], bool] = lambda _: False
        self.dropped = 0
        self._stderr = stderr
        # Reentrant: a finalizer that logs may run while this thread holds the lock.
        self._changing = threading.RLock()
        self._gap = 0
        self._since = 0.0
        self._failing = False
        self._queued_bytes = 0
        self._written_bytes = 0  # changed by the thread alone
        self._queue: SimpleQueue[_Item] = SimpleQueue()
        threading.Thread(target=self._write_for_ever, name="log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        """Queue a record; format it now, so that its arguments and traceback can be freed."""
        try:
            record.msg = record.getMessage()[:_MOST_TEXT]
            record.args = None
            text = traceback_of(record)[-_MOST_TEXT:]
            record.exc_text, record.exc_info = text or None, None
        except Exception:  # noqa: BLE001  # as all handlers of the standard library do
            self.handleError(record)
            return
        size = _RECORD_BYTES + len(record.msg) + len(text)
        self._put(_Item(self._stderr, size, record))

    def put(self, lines: Lines, size: int) -> None:
        """Queue lines that take ``size`` bytes of memory."""
        self._put(_Item(self._stderr, size, lines))

    def print(self, fd: int, text: str) -> None:
        self._put(_Item(fd, _RECORD_BYTES + len(text), text))

    def drain(self) -> None:
        """Wait until the queue is written, for at most a second."""
        deadline = time.monotonic() + _DRAIN_SECONDS
        while self._written_bytes < self._queued_bytes and time.monotonic() < deadline:
            time.sleep(_PAUSE_SECONDS / 2)

    def _put(self, item: _Item) -> None:
        with self._changing:
            most = _MOST_BYTES // 2 if self._gap else _MOST_BYTES
            if self._queued_bytes - self._written_bytes + item.size > most:
                self._drop([item])
                return
            if self._gap and not self._failing:
                self._tell_gap()
            self._append(item)

    def _append(self, item: _Item) -> None:
        self._queued_bytes += item.size
        self._queue.put(item)

    def _tell_gap(self) -> None:
        gap, self._gap = _Gap(self._gap, self._since), 0
        self._append(_Item(self._stderr, _RECORD_BYTES, gap))

    def _drop(self, items: Iterable[_Item]) -> None:
        for item in items:
            told = item.what if isinstance(item.what, _Gap) else None
            self._since = self._since if self._gap else told.since if told else time.time()
            self._gap += told.count if told else 1
            self.dropped += 0 if told else 1

    # Called by the thread.

    def _write_for_ever(self) -> None:
        while True:
            items = [self._queue.get()]
            with contextlib.suppress(Empty):
                while len(items) < _BATCH:
                    items.append(self._queue.get_nowait())
            lost = [item for _, some in groupby(items, _fd_of) for item in self._write([*some])]
            with self._changing:
                self._failing = bool(lost)
                self._drop(lost)
                self._written_bytes += sum(item.size for item in items)
                if self._gap and not self._failing and self._queue.empty():
                    self._tell_gap()
            if len(items) < _BATCH:
                time.sleep(_PAUSE_SECONDS)

    def _write(self, items: Sequence[_Item]) -> Sequence[_Item]:
        """Write to one descriptor, without a time-out; return the items not written in full."""
        texts = [self._text(item.what).encode(errors="backslashreplace") for item in items]
        left = memoryview(b"".join(texts))
        try:
            while left:
                left = left[_write_some(items[0].fd, left) :]
        except OSError:  # the reader has closed the pipe, or the disk is full
            written = -len(left)
            for number, text in reversed([*enumerate(texts)]):
                written += len(text)
                if written >= 0:
                    return items[number:]
        return ()

    def _text(self, what: logging.LogRecord | Lines | _Gap | str) -> str:
        if isinstance(what, str):
            return what
        record = what.record() if isinstance(what, _Gap) else what
        try:
            if isinstance(record, logging.LogRecord):
                if self.hand_on(record):
                    return ""
                return f"{self.format(record)}\n"
            form = self.formatter
            known = form if isinstance(form, JsonFormatter | TextFormatter) else TextFormatter()
            return record.text(known)
        except Exception as error:  # noqa: BLE001  # no record may stop the thread
            return f"a log record cannot be formatted: {error!r}: {record!r}\n"


def _fd_of(item: _Item) -> int:
    return item.fd


def _write_some(fd: int, data: memoryview) -> int:
    while True:
        try:
            return os.write(fd, data)
        except BlockingIOError:  # another process made the pipe non-blocking
            poll = select.poll()
            poll.register(fd, select.POLLOUT)
            poll.poll()


class _Stream(io.TextIOBase):
    """``sys.stdout`` or ``sys.stderr`` of a process with a queue; writing never blocks."""

    encoding = "utf-8"

    def __init__(self, output: QueuedOutput, fd: int) -> None:
        self._output = output
        self._fd = fd
        self._begun = ""

    def write(self, text: str) -> int:
        lines, newline, self._begun = (self._begun + text).rpartition("\n")
        if len(self._begun) > _MOST_TEXT:
            lines, newline, self._begun = self._begun, "\n", ""
        if newline:
            self._output.print(self._fd, lines + newline)
        return len(text)

    def fileno(self) -> int:
        return self._fd

    def isatty(self) -> bool:
        return os.isatty(self._fd)

    def writable(self) -> bool:
        return True
