"""Several processes on one port and one cache directory, and the one that watches over them.

Each worker is the mirror as it runs alone, with its share of what is bounded.  Its sockets are
opened here and stay open here: what connects while a worker is being replaced waits in its queue.
"""

import asyncio
import contextlib
import logging
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from typing import Final

from prometheus_client.multiprocess import mark_process_dead

from mirror.app.errors import StartError
from mirror.app.notify import Supervisor
from mirror.app.process import allow_open_files, announce
from mirror.app.serve import run_worker
from mirror.app.sockets import Listener, opened_worker_listeners
from mirror.config.model import Config
from mirror.logs import configure

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_SHORT_LIFE_SECONDS: Final = 5.0
_FIRST_DELAY_SECONDS: Final = 0.5
_MAX_DELAY_SECONDS: Final = 30.0
_WAIT_SECONDS: Final = 1.0
#: What a worker may take longer than ``drain`` to end.
_GRACE_SECONDS: Final = 10.0

_log = logging.getLogger(__name__)


@dataclass
class _Worker:
    """One place for a worker: its sockets stay, its processes may follow one another."""

    number: int
    listeners: list[Listener]
    process: ForkProcess | None = None
    told: Connection | None = None
    ready: bool = False
    started: float = 0.0
    delay: float = 0.0
    due: float = 0.0  # monotonic time of its next start


def supervise(config: Config) -> None:
    """Serve with several workers until SIGTERM or SIGINT.

    Raises:
        StartError: the mirror cannot start.
    """
    configure(config.log.level, config.log.format, access=config.log.access)
    with opened_worker_listeners(config, config.server.processes()) as places:
        workers = [_Worker(number, listeners) for number, listeners in enumerate(places)]
        _Watch(config, workers).run()


class _Watch:
    """Starts workers, replaces those that die, ends all of them."""

    def __init__(self, config: Config, workers: list[_Worker]) -> None:
        self._config = config
        self._share = config.share(len(workers))
        self._workers = workers
        self._context = multiprocessing.get_context("fork")
        self._systemd = Supervisor(os.environ, os.getpid())
        self._stopping = False
        self._announced = False
        allow_open_files(config.limits.connections)

    def run(self) -> None:
        """Watch over the workers until told to stop.

        Raises:
            StartError: none of them can start.
        """
        with _signals_on(self._tell) as woken:
            try:
                while not self._stopping:
                    self._start_due()
                    self._look(woken)
                    self._announce_when_ready()
                    self._systemd.alive()
                _log.info("stopping: finishing what is being sent")
                self._systemd.stopping()
            finally:
                self._end()

    def _start_due(self) -> None:
        for worker in self._workers:
            if worker.process is None and time.monotonic() >= worker.due:
                self._start(worker)

    def _start(self, worker: _Worker) -> None:
        told, telling = self._context.Pipe(duplex=False)
        others = [
            listener
            for other in self._workers
            if other is not worker
            for listener in other.listeners
            if listener not in worker.listeners
        ]
        worker.process = self._context.Process(
            target=_work,
            args=(self._share, worker, others, telling),
            name=f"mirror {worker.number}",
        )
        # A signal that comes before the worker has its own handlers must not be lost on it.
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        worker.process.start()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        telling.close()
        worker.told, worker.ready, worker.started = told, False, time.monotonic()

    def _look(self, woken: int) -> None:
        """Wait for something to happen, and see to it."""
        by_pipe = {worker.told: worker for worker in self._workers if worker.told is not None}
        happened = wait([*by_pipe, woken], self._next_seconds())
        if woken in happened:
            os.read(woken, 4096)
        for pipe in happened:
            if isinstance(pipe, Connection):
                self._hear(by_pipe[pipe], pipe)

    def _next_seconds(self) -> float:
        now = time.monotonic()
        due = [worker.due - now for worker in self._workers if worker.process is None]
        return max(0.0, min([_WAIT_SECONDS, *due]))

    def _hear(self, worker: _Worker, pipe: Connection) -> None:
        """A worker is ready, cannot start, or is gone.

        Raises:
            StartError: it cannot start, and none has before.
        """
        try:
            said: str = pipe.recv()
        except (EOFError, OSError):
            self._replace(worker)
            return
        if not said:
            worker.ready, worker.delay = True, 0.0
        elif not self._announced:
            raise StartError(said)
        else:
            _log.error("worker %d cannot start: %s", worker.number, said)

    def _replace(self, worker: _Worker) -> None:
        assert worker.process is not None, "only what was started ends"
        assert worker.told is not None, "and has a pipe"
        worker.process.join()
        mark_process_dead(worker.process.pid)  # type: ignore[no-untyped-call]  # has no types
        short = time.monotonic() - worker.started < _SHORT_LIFE_SECONDS
        doubled = min(max(2 * worker.delay, _FIRST_DELAY_SECONDS), _MAX_DELAY_SECONDS)
        worker.delay = doubled if short else 0.0
        worker.due = time.monotonic() + worker.delay
        _log.error(
            "worker %d (pid %d) ended with %s; another one starts",
            worker.number,
            worker.process.pid,
            worker.process.exitcode,
        )
        worker.told.close()
        worker.process = worker.told = None

    def _announce_when_ready(self) -> None:
        if not self._announced and all(worker.ready for worker in self._workers):
            self._announced = True
            announce(self._config, self._workers[0].listeners)
            self._systemd.ready()

    def _tell(self, number: int) -> None:
        """A signal came."""
        if number in {signal.SIGTERM, signal.SIGINT}:
            self._stopping = True
        else:
            self._send(number)

    def _send(self, number: int) -> None:
        for worker in self._workers:
            if worker.process is not None and worker.process.pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker.process.pid, number)

    def _end(self) -> None:
        self._send(signal.SIGTERM)
        deadline = time.monotonic() + self._config.server.drain.seconds + _GRACE_SECONDS
        for worker in self._workers:
            if worker.process is not None:
                worker.process.join(max(0.0, deadline - time.monotonic()))
        self._send(signal.SIGKILL)
        for worker in self._workers:
            if worker.process is not None:
                worker.process.join()


@contextlib.contextmanager
def _signals_on(tell: Callable[[int], None]) -> Iterator[int]:
    """Signals tell, and make the descriptor that is given readable."""
    woken, waking = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    before = {number: signal.signal(number, lambda got, _: tell(got)) for number in _SIGNALS}
    former = signal.set_wakeup_fd(waking, warn_on_full_buffer=False)
    try:
        yield woken
    finally:
        signal.set_wakeup_fd(former)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(woken)
        os.close(waking)


def _work(config: Config, worker: _Worker, others: list[Listener], telling: Connection) -> None:
    """What a worker does; runs in its process."""
    # The files of sockets are the parent's to remove.
    listeners = [
        Listener(each.address, each.raw, None, proxy=each.proxy) for each in worker.listeners
    ]
    signal.set_wakeup_fd(-1)
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    os.environ.pop("NOTIFY_SOCKET", None)  # the parent speaks for all
    for listener in others:
        listener.raw.close()
    try:
        asyncio.run(run_worker(config, listeners, worker.number, lambda: telling.send("")))
    except StartError as error:
        telling.send(str(error))
        sys.exit(1)
