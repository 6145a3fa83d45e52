"""A worker slot: its sockets stay open, its process may be replaced."""

import asyncio
import contextlib
import logging
import multiprocessing
import os
import signal
import socket
import sys
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from typing import Final

from prometheus_client.multiprocess import mark_process_dead

from mirror import threads
from mirror.config.model import Config
from mirror.logs import configure, queue_output
from mirror.metrics import multiprocess
from mirror.server.listeners import Listener
from mirror.server.process import Stop, heed
from mirror.server.serve import serving_on, settle
from mirror.server.store import shortage
from mirror.trouble import Problem
from mirror.user_error import UserError
from mirror.workers.channel import LogForwarder, Message, WorkerChannel

#: Signals that the first process handles itself, and a worker must not inherit.
SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_UNSEEN_SECONDS: Final = 10.0  # a worker may serve files so long after another evicted them
_SHORT_LIFE_SECONDS: Final = 5.0
_FIRST_DELAY_SECONDS: Final = 0.5
_MAX_DELAY_SECONDS: Final = 30.0

_log = logging.getLogger(__name__)


@dataclass(eq=False)
class Worker:
    """A worker, as seen by the first process."""

    number: int
    listeners: list[Listener]
    logs: socket.socket  # to the first process's log
    process: ForkProcess | None = None
    pipe: Connection | None = None
    ready: bool = False
    reloading: bool = False
    silent: float = 0.0  # seconds since its last message
    due: float = 0.0  # monotonic time of the next start
    _started: float = 0.0
    _delay: float = 0.0

    def start(self, config: Config, others: list[Listener]) -> None:
        """Start a process, which closes the sockets of ``others``.

        Raises:
            OSError: the system cannot make one.
        """
        context = multiprocessing.get_context("fork")
        pipe, telling = context.Pipe()
        foreign = [each for each in others if each not in self.listeners]
        process = context.Process(
            target=_work,
            args=(config, self, foreign, telling, os.getpid()),
            name=f"mirror {self.number}",
        )
        # A signal must not be lost that arrives before the worker has its own handlers.
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        try:
            process.start()
        except OSError:
            pipe.close()
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
            telling.close()
        multiprocess.note_process(str(self.number), process.pid)
        self.process, self.pipe = process, pipe
        self.ready, self.reloading = False, False
        self.silent, self._started = 0.0, time.monotonic()

    def hear(self) -> Message | None:
        """Return the next message of the worker, None if it has ended."""
        assert self.pipe is not None, "only a started worker sends messages"
        try:
            word: Message = self.pipe.recv()
        except (EOFError, OSError):
            return None
        self.silent = 0.0
        return word

    def serves(self) -> None:
        self.ready, self._delay = True, 0.0

    def tell(self, told: Config | Problem) -> None:
        """Have the worker apply a configuration, or show a problem of the first process."""
        if self.pipe is not None:
            with contextlib.suppress(OSError):  # it has just ended: its successor will know
                self.pipe.send(told)
                self.reloading |= isinstance(told, Config)

    def reap(self) -> None:
        """Clean up after the process has ended, and schedule its successor."""
        process, pipe = self.process, self.pipe
        assert process is not None, "only a started worker ends"
        assert pipe is not None, "and has a pipe"
        process.join()
        multiprocess.note_process(str(self.number), None)
        if multiprocess.are_shared():
            mark_process_dead(process.pid)  # type: ignore[no-untyped-call]  # untyped
        if time.monotonic() - self._started < _SHORT_LIFE_SECONDS:
            self.put_off()
        else:
            self.due, self._delay = time.monotonic(), 0.0
        text = "worker %d (pid %d) ended with %s; another one starts"
        _log.error(text, self.number, process.pid, process.exitcode)
        pipe.close()
        self.process = self.pipe = None
        self.reloading = False

    def put_off(self) -> None:
        """Delay the start of the next process, longer each time."""
        self._delay = min(max(2 * self._delay, _FIRST_DELAY_SECONDS), _MAX_DELAY_SECONDS)
        self.due = time.monotonic() + self._delay

    def send(self, number: int) -> None:
        """Send a signal to the process, if there is one."""
        if self.process is not None and self.process.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.process.pid, number)


def _work(
    config: Config, worker: Worker, others: list[Listener], telling: Connection, parent: int
) -> None:
    output = queue_output()  # the thread of the parent's queue does not exist after fork
    configure(config.log.level, config.log.format, access=config.log.access)
    # The parent removes the socket files.
    listeners = [Listener(each.address, each.raw, None, each.purpose) for each in worker.listeners]
    signal.set_wakeup_fd(-1)
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    os.environ.pop("NOTIFY_SOCKET", None)  # only the parent notifies systemd
    for listener in others:
        listener.raw.close()
    # A closed terminal sends SIGHUP to all processes; the first one decides what it means.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    forwarder = LogForwarder(worker.logs)
    output.hand_on = forwarder.hand_on
    channel = WorkerChannel(telling, parent)
    try:
        try:
            threads.run(_serve(config, listeners, worker.number, forwarder, channel))
        finally:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
    except KeyboardInterrupt:  # asyncio restores Python's own handler when it closes the loop
        sys.exit(1)
    except UserError as error:
        channel.failed(error)
        sys.exit(1)
    except Exception:  # noqa: BLE001  # multiprocessing would print it after the drain
        _log.exception("worker %d failed", worker.number)
        sys.exit(1)
    finally:
        output.drain()


async def _serve(
    config: Config,
    listeners: list[Listener],
    number: int,
    pulls: LogForwarder,
    channel: WorkerChannel,
) -> None:
    """Serve until told to stop, or until the first process is gone.

    ``config`` holds this worker's share of the limits.

    Raises:
        UserError: the mirror cannot start.
    """
    stop = Stop()
    heed(stop)
    first, unseen = number == 0, _UNSEEN_SECONDS
    serving = serving_on(listeners, config, stop.asked, pulls, first=first, unseen=unseen)
    try:
        async with channel.held(stop), serving as reloadable:
            settle()
            channel.ready(await shortage(config, reloadable.store))
            obeying = asyncio.create_task(channel.obey(reloadable), name="reload")
            await stop.asked.wait()
            obeying.cancel()
            await stop.due(reloadable.config.server.lame_duck.seconds)
    finally:
        # asyncio closes its wakeup sockets before it restores the handlers; a signal in between
        # would make it log an error.
        for each in (signal.SIGTERM, signal.SIGINT):
            signal.signal(each, signal.SIG_IGN)
