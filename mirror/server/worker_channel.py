"""The channel between a worker and the first process: a pipe with messages in both directions.

The worker reports that its loop runs, that it serves, or why it cannot; the first process sends
each new configuration, or that it has refused one.
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import Enum, auto
from multiprocessing.connection import Connection
from typing import Final

from mirror.access_log import PullSink
from mirror.config.model import Config
from mirror.server.process import Stop, until_orphaned
from mirror.server.reload import Reloadable, refused_reload
from mirror.trouble import Problem
from mirror.user_error import UserError

_log = logging.getLogger(__name__)

#: Interval between two reports that the loop runs.
BEAT_SECONDS: Final = 1.0


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
    """The worker's end of the channel; ``pulls`` takes its requests to the first process."""

    def __init__(self, pipe: Connection, pulls: PullSink) -> None:
        self._pipe = pipe
        self.pulls = pulls
        self._told: asyncio.Queue[Config | Problem] = asyncio.Queue()

    def failed(self, error: Exception) -> None:
        """Report that the worker cannot start."""
        self._say(MessageKind.FAILED, str(error))

    def ready(self, shortage: str) -> None:
        """Report that the worker serves, and what ``server.store.shortage`` found."""
        self._say(MessageKind.READY, shortage)

    @asynccontextmanager
    async def held(self, stop: Stop) -> AsyncIterator[None]:
        """Report at intervals that the loop runs; stop if the parent process is gone."""
        tasks = [asyncio.create_task(each) for each in (self._beat(), until_orphaned(stop))]
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
            self._say(MessageKind.ALIVE)
            await asyncio.sleep(BEAT_SECONDS)

    def _say(self, news: MessageKind, text: str = "") -> None:
        with contextlib.suppress(BrokenPipeError):  # orphaned: until_orphaned() notices
            self._pipe.send(Message(news, text))
