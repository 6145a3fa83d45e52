"""A child process: started, waited for, ended by its pid, its output kept."""

import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tests.waiting import LIMIT_SECONDS


class NotReadyError(Exception):
    """The process ended, or did not become ready in time; the message has what it printed."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def accepts(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Process:
    """One run of a program, its output appended to ``log``."""

    def __init__(
        self, command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self.log = log
        self._started_at = log.stat().st_size if log.exists() else 0
        with log.open("ab") as output:
            self._child = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, env=environment
            )

    @property
    def pid(self) -> int:
        return self._child.pid

    def wait_until(self, ready: Callable[[], bool], seconds: float = LIMIT_SECONDS) -> None:
        """Poll until ready."""
        deadline = time.monotonic() + seconds
        while not ready():
            if self._child.poll() is not None or time.monotonic() > deadline:
                raise NotReadyError(f"{self._child.args!r}:\n{self.output()[-4000:]}")
            time.sleep(0.05)

    def output(self) -> str:
        """What this run printed so far."""
        return self.log.read_bytes()[self._started_at :].decode(errors="replace")

    def terminate(self, seconds: float = LIMIT_SECONDS) -> int:
        """SIGTERM, SIGKILL if that does not do; the exit code."""
        if self._child.poll() is None:
            self._child.terminate()
        try:
            return self._child.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def kill(self) -> None:
        """SIGKILL."""
        self._child.kill()
        self._child.wait()

    def wait(self, seconds: float = LIMIT_SECONDS) -> int:
        return self._child.wait(seconds)
