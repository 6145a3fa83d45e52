"""Several worker processes on one port and one cache directory, and their supervisor.

Each worker runs the mirror as a single process would, with its share of the limits.  The supervisor
opens the sockets and keeps them open, so that connections wait in the queue while a worker is
replaced.  It replaces a worker that ends or whose loop hangs.  It reads the configuration again on
SIGHUP, and sends it to all workers.
"""

import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection, wait
from typing import Final

from prometheus_client import CollectorRegistry

from mirror.config.changes import in_force
from mirror.config.model import Config
from mirror.logs import configure
from mirror.metrics.multiprocess import note_process
from mirror.metrics.shared_files import SUPERVISOR, Lifecycle, use_shared_files
from mirror.server.listeners import opened_worker_listeners
from mirror.server.open_files import allow_open_files, say_what_is_cut
from mirror.server.process import SECOND_SIGNAL, SystemdNotifier, announce, say_stopping
from mirror.server.reload import Reread, refused_reload, tell_changes, tell_mistakes, try_out
from mirror.user_error import UserError
from mirror.workers.channel import LogReceiver, MessageKind
from mirror.workers.worker import SIGNALS, Worker

_WAIT_SECONDS: Final = 1.0
#: How much longer than ``lame_duck`` and ``drain`` a worker may take to end.
_GRACE_SECONDS: Final = 10.0

_log = logging.getLogger(__name__)


def supervise(config: Config, reread: Reread) -> None:
    """Serve with several workers until SIGTERM or SIGINT; ``reread`` on SIGHUP.

    Raises:
        UserError: the mirror cannot start.
    """
    configure(config.log.level, config.log.format, access=config.log.access)
    processes = config.server.processes()
    with (
        contextlib.closing(LogReceiver()) as logs,
        opened_worker_listeners(config, processes) as places,
    ):
        workers = [
            Worker(number, listeners, logs.entrance) for number, listeners in enumerate(places)
        ]
        _Supervisor(config, workers, logs, reread).run()


class _Supervisor:
    """Starts the workers, replaces those that die, and ends all of them."""

    def __init__(
        self, config: Config, workers: list[Worker], logs: LogReceiver, reread: Reread
    ) -> None:
        self._config = config
        self._logs = logs
        self._reread = reread
        self._share = config.share(len(workers))
        self._workers = workers
        self._systemd = SystemdNotifier()
        self._stopping = 0  # the signal that asked for it
        self._announced = False
        self._shortage = ""
        self._hangup = False
        self._reload_refused = False  # a worker has refused the configuration of the last reload
        use_shared_files()
        self._lifecycle = Lifecycle(CollectorRegistry())
        self._lifecycle.reloaded(successful=True)
        note_process(SUPERVISOR, os.getpid())
        self._reloaded: tuple[Config, Config] | None = None  # before and after, until all have it
        self._looked = time.monotonic()
        allow_open_files()

    def run(self) -> None:
        """Supervise the workers until told to stop.

        Raises:
            UserError: no worker can start.
        """
        with _signals_on(self._tell) as woken:
            try:
                while not self._stopping:
                    self._start_due()
                    self._look(woken)
                    self._announce_when_ready()
                    self._kill_hung()
                    self._reload()
                    self._systemd.alive()
                say_stopping(self._config)
                self._systemd.stopping()
            finally:
                self._end()

    def _start_due(self) -> None:
        for worker in self._workers:
            if worker.process is None and time.monotonic() >= worker.due:
                others = [each for other in self._workers for each in other.listeners]
                try:
                    worker.start(self._share, others)
                except OSError as error:
                    self._refused(worker, error)

    def _refused(self, worker: Worker, error: OSError) -> None:
        """Handle a worker for which the system has no process; the other workers serve meanwhile.

        Raises:
            UserError: the mirror has not served yet.
        """
        text = (
            f"worker {worker.number} cannot start: {error.strerror}; raise the limit on processes "
            "(--pids-limit, TasksMax, ulimit -u), on open files, or on memory"
        )
        if not self._announced:
            raise UserError(text) from error
        worker.put_off()
        _log.error("%s", text)

    def _look(self, woken: int) -> None:
        by_pipe = {worker.pipe: worker for worker in self._workers if worker.pipe is not None}
        happened = wait([*by_pipe, woken, self._logs.fileno()], self._next_seconds())
        if woken in happened:
            os.read(woken, 4096)
        for pipe in happened:
            if isinstance(pipe, Connection):
                self._hear(by_pipe[pipe])
        self._logs.receive()

    def _next_seconds(self) -> float:
        now = time.monotonic()
        due = [worker.due - now for worker in self._workers if worker.process is None]
        return max(0.0, min([_WAIT_SECONDS, *due]))

    def _hear(self, worker: Worker) -> None:
        """Handle a message or the end of a worker.

        Raises:
            UserError: the worker cannot start, and the mirror has not served yet.
        """
        word = worker.hear()
        if word is None:
            worker.reap()
            self._lifecycle.worker_replaced()
        elif word.news is MessageKind.READY:
            worker.serves()
            self._shortage = word.text
        elif word.news is MessageKind.FAILED:
            if not self._announced:
                raise UserError(word.text)
            _log.error("worker %d cannot start: %s", worker.number, word.text)
        elif word.news is not MessageKind.ALIVE:
            worker.reloading = False
            if word.news is MessageKind.REFUSED:
                self._reload_refused = True
                text = "worker %d keeps the former configuration: %s"
                _log.error(text, worker.number, word.text)

    def _kill_hung(self) -> None:
        """Kill workers that have been silent for too long, so that new ones can replace them."""
        now = time.monotonic()
        # If all processes stood still (a suspended machine), no worker has hung.
        elapsed, self._looked = min(now - self._looked, 2 * _WAIT_SECONDS), now
        patience = self._config.server.worker_timeout
        for worker in self._workers:
            worker.silent += elapsed
            process = worker.process
            if 0 < patience.seconds < worker.silent and process is not None:
                text = "worker %d (pid %d) has hung for more than %s, and is killed"
                _log.error(text, worker.number, process.pid, patience.text)
                worker.silent = 0.0
                process.kill()

    def _reload(self) -> None:
        """Reload the configuration if asked to, and log when all workers have applied it."""
        if self._hangup and self._announced:
            self._hangup = False
            self._systemd.reloading()
            try:
                self._hand_on(self._reread())
            except UserError as error:
                tell_mistakes(error)
                for worker in self._workers:
                    worker.tell(refused_reload())
                self._lifecycle.reloaded(successful=False)
                self._systemd.ready()
        if self._reloaded is not None and not any(worker.reloading for worker in self._workers):
            tell_changes(*self._reloaded)
            self._lifecycle.reloaded(successful=not self._reload_refused)
            self._reloaded = None
            self._systemd.ready()

    def _hand_on(self, read: Config) -> None:
        """Send a configuration to all workers.

        Raises:
            UserError: something that it names cannot be used.
        """
        config = in_force(self._config, read)
        try_out(config)
        configure(config.log.level, config.log.format, access=config.log.access)
        self._reloaded, self._reload_refused = (self._config, read), False
        self._config, self._share = config, config.share(len(self._workers))
        say_what_is_cut(self._share)
        for worker in self._workers:
            worker.tell(self._share)

    def _announce_when_ready(self) -> None:
        if not self._announced and all(worker.ready for worker in self._workers):
            self._announced = True
            announce(self._config, self._workers[0].listeners, self._shortage)
            say_what_is_cut(self._share)
            self._systemd.ready()

    def _tell(self, number: int) -> None:
        if number == signal.SIGHUP:
            self._hangup = True
        elif self._stopping:  # a second signal
            _log.warning(SECOND_SIGNAL)
            self._send(signal.SIGKILL)
        else:
            self._stopping = number

    def _send(self, number: int) -> None:
        for worker in self._workers:
            worker.send(number)

    def _end(self) -> None:
        self._send(self._stopping or signal.SIGINT)  # SIGINT: without lame-duck time
        server = self._config.server
        seconds = server.lame_duck.seconds + server.drain.seconds + _GRACE_SECONDS
        deadline = time.monotonic() + seconds
        running = [worker.process for worker in self._workers if worker.process is not None]
        while running and (left := deadline - time.monotonic()) > 0:
            wait([*(process.sentinel for process in running), self._logs.fileno()], left)
            self._logs.receive()
            running = [process for process in running if process.is_alive()]
        self._send(signal.SIGKILL)
        for worker in self._workers:
            if worker.process is not None:
                worker.process.join()
        self._logs.receive(final=True)


@contextlib.contextmanager
def _signals_on(tell: Callable[[int], None]) -> Iterator[int]:
    """Handle signals with ``tell``; yields a descriptor that becomes readable on each."""
    woken, waking = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    before = {number: signal.signal(number, lambda got, _: tell(got)) for number in SIGNALS}
    former = signal.set_wakeup_fd(waking, warn_on_full_buffer=False)
    try:
        yield woken
    finally:
        signal.set_wakeup_fd(former)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(woken)
        os.close(waking)
