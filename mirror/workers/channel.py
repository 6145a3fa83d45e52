"""Between the workers and the first process: a pipe for each, and one socket for their logs.

Through the pipe a worker reports that its loop runs, that it serves, or why it cannot; the first
process sends each new configuration, or that it has refused one.  Through the socket go the parts
of what would be several log lines, but is one.

The kernel hands the connections of one client to any worker, so only the first process sees whole
pulls.  A trouble that lasts, such as an upstream that is down, is met by all workers.  Workers send
datagrams, from the threads of their logs: a worker that is killed leaves no half message, and a
first process that hangs costs lines, but never delays a request.
"""

import asyncio
import contextlib
import io
import logging
import pickle
import re
import select
import socket
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import Enum, auto
from multiprocessing.connection import Connection
from typing import Final, NamedTuple

from mirror.access_log.answers import Answered, RunningRequest
from mirror.access_log.lines import log_pulls
from mirror.access_log.pulls import Pull, PullTracker
from mirror.config.model import Config
from mirror.logs import fields_of
from mirror.lru import Lru
from mirror.server.process import Stop, until_orphaned
from mirror.server.reload import Reloadable, refused_reload
from mirror.trouble import Problem
from mirror.user_error import UserError

_BUFFER_BYTES: Final = 1024 * 1024  # the system may allow less
_MESSAGE_BYTES: Final = 32 * 1024  # of a message that is not one large manifest
_MOST_BYTES: Final = 256 * 1024
_MOST_AT_ONCE: Final = 1000  # messages read before the first process does its other work
_PATIENCE_SECONDS: Final = 1.0
#: The loggers whose warnings are about a trouble that all workers meet.
_TROUBLES: Final = (
    "mirror.upstream.",
    "mirror.pull.",
    "mirror.store.local.disk_usage",
    "mirror.http.htpasswd",
    "mirror.http.tls",
    "mirror.cluster.",
    "mirror.stats.",
)
_MOST_TROUBLES: Final = 1024
_QUIET_SECONDS: Final = 60.0
#: These differ between workers.
_TIMES: Final = re.compile(r"after \d+ s|\d\d:\d\d:\d\d| \(not asked again\)", re.ASCII)

#: Interval between two reports that the loop runs.
BEAT_SECONDS: Final = 1.0

_log = logging.getLogger(__name__)


class MessageKind(Enum):
    """The kinds of a worker's messages."""

    ALIVE = auto()
    READY = auto()
    FAILED = auto()
    RELOADED = auto()
    REFUSED = auto()


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a worker; ``text`` is the reason of a failure, or the shortage of disk."""

    news: MessageKind
    text: str = ""


class WorkerChannel:
    """The worker's end of its pipe."""

    def __init__(self, pipe: Connection, parent: int) -> None:
        """``parent``: the number of the first process."""
        self._pipe = pipe
        self._parent = parent
        self._told: asyncio.Queue[Config | Problem] = asyncio.Queue()

    def failed(self, error: Exception) -> None:
        self._say(MessageKind.FAILED, str(error))

    def ready(self, shortage: str) -> None:
        """Report that the worker serves, and what ``server.store.shortage`` found."""
        self._say(MessageKind.READY, shortage)

    @asynccontextmanager
    async def held(self, stop: Stop) -> AsyncIterator[None]:
        """Report at intervals that the loop runs; stop if the parent process is gone."""
        orphaned = until_orphaned(stop, self._parent)
        tasks = [asyncio.create_task(each) for each in (self._beat(), orphaned)]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()

    async def obey(self, running: Reloadable) -> None:
        """Apply every configuration that the first process sends; show what it has refused."""
        asyncio.get_running_loop().add_reader(self._pipe.fileno(), self._hear)
        while True:
            told = await self._told.get()
            if isinstance(told, Problem):
                running.refused.met(told)
                continue
            try:
                await running.reload(told)
            except UserError as error:
                running.refused.met(refused_reload())
                self._say(MessageKind.REFUSED, str(error))
            except Exception:  # the task must live on for the next reload
                _log.exception("not reloaded: the mirror failed")
                self._say(MessageKind.REFUSED, "unexpected error, see the log above")
            else:
                self._say(MessageKind.RELOADED)

    def _hear(self) -> None:
        try:
            self._told.put_nowait(self._pipe.recv())
        except EOFError:  # orphaned: until_orphaned() notices
            asyncio.get_running_loop().remove_reader(self._pipe.fileno())

    async def _beat(self) -> None:
        while True:
            # While the first process hangs it reads nothing: the pipe is full after 278 beats, and
            # then a further one would block this loop.
            if self._takes_more():
                self._say(MessageKind.ALIVE)
            await asyncio.sleep(BEAT_SECONDS)

    def _takes_more(self) -> bool:
        poll = select.poll()  # unlike select(), it takes descriptors above 1,023
        poll.register(self._pipe, select.POLLOUT)
        return bool(poll.poll(0))

    def _say(self, news: MessageKind, text: str = "") -> None:
        with contextlib.suppress(BrokenPipeError):  # orphaned: until_orphaned() notices
            self._pipe.send(Message(news, text))


class _Warning(NamedTuple):
    """A log record about a trouble."""

    logger: str
    level: int
    text: str


class LogForwarder:
    """A worker's end; used by the thread of its log."""

    def __init__(self, out: socket.socket) -> None:
        """Send to ``out``, the socket that :meth:`LogReceiver.entrance` returns."""
        self._out = out
        out.settimeout(_PATIENCE_SECONDS)

    def take(
        self,
        answered: Iterable[Answered],
        running: Collection[RunningRequest],
        *,
        final: bool = False,  # noqa: ARG002  # other workers may go on with these pulls
    ) -> list[Pull]:
        """Send requests to the first process, which finds out when pulls end."""
        message = b""
        for each in (*answered, *running):
            part = pickle.dumps(each)
            if message and len(message) + len(part) > _MESSAGE_BYTES:
                self._send(message)
                message = b""
            message += part
        if message:
            self._send(message)
        return []

    def hand_on(self, record: logging.LogRecord) -> bool:
        """Send a warning that other workers may have too; return whether the record was one."""
        if record.levelno < logging.WARNING or record.exc_text or fields_of(record):
            return False  # with fields it is an event, such as a decision on one request
        warning = _Warning(record.name, record.levelno, record.getMessage())
        return record.name.startswith(_TROUBLES) and self._send(pickle.dumps(warning))

    def _send(self, message: bytes) -> bool:
        try:
            self._out.send(message)
        except OSError:  # the first process hangs or is gone, or the message is too long
            return False
        return True


class LogReceiver:
    """The first process's end: logs the pulls and the troubles of all workers."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._in, self._entrance = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._in.setblocking(False)
        for end, option in ((self._in, socket.SO_RCVBUF), (self._entrance, socket.SO_SNDBUF)):
            end.setsockopt(socket.SOL_SOCKET, option, _BUFFER_BYTES)
        self._clock = clock
        self._tracker = PullTracker(clock)
        self._warned: Lru[str, float] = Lru(_MOST_TROUBLES)

    @property
    def entrance(self) -> socket.socket:
        """The socket for the workers."""
        return self._entrance

    def fileno(self) -> int:
        """Return the descriptor that is readable when requests have arrived."""
        return self._in.fileno()

    def receive(self, *, final: bool = False) -> None:
        """Read what has arrived, and log the pulls that ended; ``final``: all of them."""
        answered: list[Answered] = []
        running: set[RunningRequest] = set()
        for _ in range(_MOST_AT_ONCE):
            try:
                message = io.BytesIO(self._in.recv(_MOST_BYTES))
            except BlockingIOError:
                break
            while message.tell() < len(message.getbuffer()):
                each = pickle.load(message)  # noqa: S301  # from a process of this program
                if isinstance(each, Answered):
                    answered.append(each)
                elif isinstance(each, RunningRequest):
                    running.add(each)
                else:
                    self._warn(each)
        log_pulls(self._tracker.take(answered, running, final=final))

    def _warn(self, warning: _Warning) -> None:
        """Log a warning, unless a worker logged the same within a minute."""
        key, now = _TIMES.sub("", warning.text), self._clock()
        before = self._warned.get(key)
        if before is not None and now - before < _QUIET_SECONDS:
            return
        self._warned.put(key, now)
        logging.getLogger(warning.logger).log(warning.level, "%s", warning.text)

    def close(self) -> None:
        self._in.close()
        self._entrance.close()
