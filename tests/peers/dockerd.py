"""Debian's Docker daemon, on a socket of its own, with the mirror as its registry mirror."""

import os
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.peers.process import Process
from tests.waiting import LIMIT_SECONDS


@dataclass
class Dockerd:
    """A daemon with its data below ``directory``.

    Docker Hub is a closed port of the loopback for it (HTTPS_PROXY), so that what is pulled can
    have come through the mirror only; ``environment`` may name another proxy.
    """

    directory: Path
    mirror: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    config: Path | None = None  # its daemon.json

    def start(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        self._socket = self.directory / "docker.sock"
        command = [
            "dockerd",
            *("--host", f"unix://{self._socket}"),
            *("--data-root", f"{self.directory}/data"),
            *("--exec-root", f"{self.directory}/exec"),
            *("--pidfile", f"{self.directory}/pid"),
            *(("--config-file", str(self.config)) if self.config else ()),
            *("--iptables=false", "--bridge=none"),
            *(("--registry-mirror", self.mirror) if self.mirror else ()),
        ]
        environment = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HTTPS_PROXY": "http://127.0.0.1:9",
            "NO_PROXY": "127.0.0.1",
            **self.environment,
        }
        self._process = Process(command, self.directory / "log", environment)
        self._process.wait_until(self._answers)

    def reload(self) -> None:
        """Read daemon.json again, as `systemctl reload docker` has it done."""
        os.kill(self._process.pid, signal.SIGHUP)

    def stop(self) -> None:
        self._process.terminate()
        # It leaves the network of a container that had the host's.
        for line in Path("/proc/self/mounts").read_text().splitlines():
            place = line.split()[1]
            if place.startswith(f"{self.directory}/"):
                subprocess.run(["umount", place], check=True)

    def docker(self, *arguments: str, seconds: float = LIMIT_SECONDS) -> str:
        """Run the docker command; its standard output."""
        done = self._run(*arguments, seconds=seconds)
        assert done.returncode == 0, f"docker {' '.join(arguments)}: {done.stderr}"
        return done.stdout

    def refused(self, *arguments: str) -> str:
        """Run a docker command that has to fail; what it says."""
        done = self._run(*arguments, seconds=LIMIT_SECONDS)
        assert done.returncode != 0, f"docker {' '.join(arguments)}: {done.stdout}"
        return done.stderr

    def try_docker(self, *arguments: str, seconds: float = LIMIT_SECONDS) -> tuple[int, str]:
        """Run the docker command; its exit code, and all it printed."""
        done = self._run(*arguments, seconds=seconds)
        return done.returncode, done.stdout + done.stderr

    def _answers(self) -> bool:
        return self._socket.exists() and self._run("version", seconds=LIMIT_SECONDS).returncode == 0

    def _run(self, *arguments: str, seconds: float) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            self.command(*arguments), capture_output=True, text=True, timeout=seconds, check=False
        )

    def command(self, *arguments: str) -> list[str]:
        """The docker command for this daemon."""
        own = str(self.directory / "cli")  # where logins are kept
        return ["docker", "--config", own, "--host", f"unix://{self._socket}", *arguments]
