"""The product as its users run it: a process of its own with a configuration file."""

import json
import os
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mirror.stats.queries import read_report
from tests.peers.process import Process, free_port
from tests.waiting import LIMIT_SECONDS


@dataclass
class MirrorProcess:
    """A mirror on a port of its own; its cache stays over stop, kill and start."""

    directory: Path
    upstreams: Mapping[str, str]
    extra: str = ""
    measured: bool = True  # False: no coverage, where time is what the test is about
    port: int = field(default_factory=free_port)
    workers: int = 1
    server: str = ""  # more lines of [server]
    cache: str = ""  # more lines of [cache]
    listen: str = "127.0.0.1"
    host: str = "127.0.0.1"  # where its clients reach it
    within: Sequence[str] = ()  # begins the command, such as `ip netns exec NAME`

    def start(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        config = self.write_configuration()
        command = [*self.within, sys.executable, "-m", "mirror", "serve", "--config", str(config)]
        environment = {
            name: value
            for name, value in os.environ.items()
            if self.measured or not name.startswith("COV")
        }
        self._process = Process(command, self.directory / "log", environment)
        self._process.wait_until(self._ready)
        if self.workers > 1:  # the first one to serve was ready; the announcement waits for all
            self._process.wait_until(lambda: " listens on " in self.output())

    def write_configuration(self) -> Path:
        config = self.directory / "mirror.toml"
        config.write_text(self._toml())
        return config

    def terminate(self) -> int:
        return self._process.terminate()

    def wait(self) -> int:
        """Wait for its end; return the exit code."""
        return self._process.wait()

    def kill(self) -> None:
        self._process.kill()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    def output(self) -> str:
        return self._process.output()

    def metrics(self) -> dict[str, float]:
        """Each sample of /metrics by name and labels as they stand there."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=LIMIT_SECONDS) as response:
            lines = response.read().decode().splitlines()
        samples = (line.rpartition(" ") for line in lines if not line.startswith("#"))
        return {name: float(value) for name, _, value in samples}

    def pulls(self, upstream: str, repository: str) -> dict[tuple[str, str], int]:
        """How often the ledger says that a repository was pulled, by tag or digest and client."""
        with urllib.request.urlopen(
            self.url, timeout=LIMIT_SECONDS
        ):  # whoever looks has it written
            pass
        pulls: Counter[tuple[str, str]] = Counter()
        said = read_report(self.directory / "cache" / "ledger", time.time())
        for pull in said.recent:
            if (pull.upstream, pull.repository) == (upstream, repository):
                pulls[pull.reference, pull.client] += pull.times
        return dict(pulls)

    def _ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/readyz", timeout=LIMIT_SECONDS) as response:
                return bool(response.status == 200)
        except OSError:
            return False

    def _toml(self) -> str:
        lines = ["[server]", f'listen = "{self.listen}:{self.port}"', f"workers = {self.workers}"]
        if "lame_duck" not in self.server:
            lines += ['lame_duck = "0s"']  # only tests of it wait for it
        lines += [self.server]
        lines += ["[cache]"]
        lines += [f"directory = {json.dumps(str(self.directory / 'cache'))}", 'min_free = "0"']
        lines += [self.cache]
        for name, url in self.upstreams.items():
            lines += [f"[upstreams.{json.dumps(name)}]", f"url = {json.dumps(url)}"]
        return "\n".join(lines) + "\n" + self.extra
