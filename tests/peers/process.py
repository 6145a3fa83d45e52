"""A child process: started, waited for, ended by its pid, its output kept."""

import fcntl
import os
import random
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tests.waiting import LIMIT_SECONDS


class NotReadyError(Exception):
    """The process ended, or did not become ready in time; the message has what it printed."""


def free_port() -> int:
    """A port that nothing listens on, and that this machine gives to nothing else.

    The system takes the local ports of outgoing connections, and of sockets bound to port 0,
    from a range of its own. A port from there can be taken again between this call and the
    program that is to listen on it, so these lie below it, and each is given once among all
    test processes until every other one was given.
    """
    lowest_of_system = int(_PORTS_OF_SYSTEM.read_text().split()[0])
    count = max(lowest_of_system, _FIRST_PORT + 1000) - _FIRST_PORT
    with _LAST_PORT.open("a+") as last:
        fcntl.flock(last, fcntl.LOCK_EX)
        last.seek(0)
        offset = int(last.read() or random.randrange(count))
        for _ in range(count):
            offset = (offset + 1) % count
            if _is_free(_FIRST_PORT + offset):
                last.truncate(0)
                last.write(str(offset))
                return _FIRST_PORT + offset
    raise NotReadyError(f"no port is free among {count} from {_FIRST_PORT}")


_FIRST_PORT = 10_000
_PORTS_OF_SYSTEM = Path("/proc/sys/net/ipv4/ip_local_port_range")
_LAST_PORT = Path(tempfile.gettempdir()) / f"mirror-tests-last-port-{os.getuid()}"


def _is_free(port: int) -> bool:
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        with socket.create_server(("", port), family=family, dualstack_ipv6=both):
            return True
    except OSError:
        return False


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
