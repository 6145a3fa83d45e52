"""A log that is not read: requests are answered, and the log says what it lacks."""

import asyncio
import fcntl
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import pytest

from tests.peers.mirror import MirrorProcess
from tests.waiting import LIMIT_SECONDS, limit

pytestmark = [pytest.mark.e2e]

PIPE_BYTES = 4096  # the smallest that Linux allows
REQUESTS = 5000
GAP = re.compile(r"(\d+) log records dropped since \d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ: ")


@dataclass
class Piped:
    """A mirror whose output goes into a pipe that is only read when a test does so."""

    directory: Path
    workers: int = 1
    filled: bool = False  # as another writer left it before the start
    output: list[bytes] = field(default_factory=list)

    def start(self) -> None:
        extra = '[log]\nlevel = "debug"\n'  # a line per request
        self._mirror = MirrorProcess(self.directory, {}, extra, workers=self.workers)
        self.directory.mkdir()
        config = self._mirror.write_configuration()
        self._reading, writing = os.pipe()
        fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        if self.filled:
            os.write(writing, b"." * PIPE_BYTES)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mirror", "serve", "--config", str(config)],
            stdout=writing,
            stderr=writing,
        )
        os.close(writing)
        deadline = time.monotonic() + LIMIT_SECONDS
        while not self._mirror._ready():
            assert time.monotonic() < deadline, "the mirror does not start"
            assert self.process.poll() is None, "the mirror ended"
            time.sleep(0.05)

    @property
    def url(self) -> str:
        return self._mirror.url

    def metric(self, name: str) -> float:
        return self._mirror.metrics()[name]

    def read(self) -> threading.Thread:
        """Read from now on, until the mirror has ended."""

        def reading() -> None:
            while piece := os.read(self._reading, 65536):
                self.output.append(piece)

        thread = threading.Thread(target=reading)
        thread.start()
        return thread

    def text(self) -> str:
        return b"".join(self.output).decode()

    def close_reader(self) -> None:
        os.close(self._reading)

    def terminate(self) -> int:
        self.process.terminate()
        return self.process.wait(LIMIT_SECONDS)


@pytest.fixture
def mirror(tmp_path) -> Iterator[Piped]:
    mirror = Piped(tmp_path / "mirror")
    yield mirror
    mirror.process.kill()
    mirror.process.wait()


async def pinged(mirror: Piped, count: int) -> int:
    """Ask for so much, some at a time; how many were answered."""
    async with aiohttp.ClientSession() as session:

        async def ping(path: str = "/v2/") -> bool:
            async with session.get(mirror.url + path) as response:
                return response.status == 200

        answered = 0
        for _ in range(count // 50):
            answered += sum(await asyncio.gather(*(ping() for _ in range(50))))
        assert await ping("/healthz")
    return answered


@pytest.mark.long
async def test_a_pipe_that_is_not_read_costs_log_lines_and_no_request(mirror):
    mirror.filled = True
    await asyncio.to_thread(mirror.start)
    assert await pinged(mirror, REQUESTS) == REQUESTS
    dropped = await asyncio.to_thread(mirror.metric, "mirror_log_dropped_total")
    assert 0 < dropped < REQUESTS
    reader = mirror.read()
    async with limit():
        while not GAP.search(mirror.text()):
            await asyncio.sleep(0.05)
    assert await pinged(mirror, 50) == 50
    assert mirror.terminate() == 0
    reader.join()
    text = mirror.text()
    told = sum(int(count) for count in GAP.findall(text))
    requests = len(re.findall(r"^\S+ debug request ", text, re.MULTILINE))
    assert requests + told >= REQUESTS + 50, "each has its line or is counted"
    assert dropped <= told < REQUESTS
    assert "listens on" in text, "the banner waited like the rest"
    assert text.index("listens on") < text.index("log records dropped")


@pytest.mark.long
async def test_with_several_workers_none_of_them_waits_for_the_log(mirror):
    mirror.workers = 2
    await asyncio.to_thread(mirror.start)
    assert await pinged(mirror, REQUESTS) == REQUESTS
    assert mirror.terminate() == 0, "nor does the end"


@pytest.mark.long
async def test_a_reader_that_goes_away_costs_log_lines_and_no_request(mirror):
    await asyncio.to_thread(mirror.start)
    mirror.close_reader()
    assert await pinged(mirror, 200) == 200
    async with limit():
        while not await asyncio.to_thread(mirror.metric, "mirror_log_dropped_total"):
            await asyncio.sleep(0.05)
    assert await pinged(mirror, 200) == 200
    assert mirror.terminate() == 0


@pytest.mark.long
async def test_the_end_does_not_wait_for_a_reader(mirror):
    mirror.filled = True
    await asyncio.to_thread(mirror.start)
    assert mirror.terminate() == 0
