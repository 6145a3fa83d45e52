"""A small limit on open files: the bounds fit into it, and reaching it is no flood of lines."""

import asyncio
import contextlib
import os
import resource
import socket
import sys
from pathlib import Path

import pytest

from tests.e2e.test_workers import get
from tests.fakes import FakeRegistry, random_bytes
from tests.peers.mirror import MirrorProcess
from tests.peers.process import Process
from tests.peers.requirements import need
from tests.waiting import limit, until

pytestmark = [pytest.mark.e2e, pytest.mark.long]

MIB = 1 << 20
LIMIT = 160
BLOB = "/v2/library/app/blobs/"
LINE = "new clients wait until there is room"


def open_files(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


async def connect(mirror: MirrorProcess, count: int, stack: contextlib.ExitStack) -> None:
    """So many clients that say nothing."""
    for _ in range(count):
        client = stack.enter_context(socket.socket())
        client.setblocking(False)
        with contextlib.suppress(OSError):
            await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", mirror.port))


async def answers(mirror: MirrorProcess) -> None:
    async with limit():
        while True:
            with contextlib.suppress(Exception):
                await get(mirror.url + "/healthz")
                return
            await asyncio.sleep(0.1)


@pytest.mark.parametrize("workers", [1, 2])
async def test_bounds_are_cut_down_to_the_limit_and_one_line_says_so(tmp_path, workers):
    need("prlimit")
    data = random_bytes(4 * MIB)
    async with FakeRegistry() as upstream:
        blobs = [upstream.add_blob(data + bytes([number])) for number in range(8)]
        mirror = MirrorProcess(tmp_path, {"docker.io": upstream.url}, workers=workers)
        tmp_path.mkdir(exist_ok=True)
        limit = ["prlimit", f"--nofile={LIMIT}:{LIMIT}"]
        serve = [sys.executable, "-m", "mirror", "serve"]
        command = [*limit, *serve, "--config", str(mirror.write_configuration())]
        environment = {name: value for name, value in os.environ.items() if name[:3] != "COV"}
        mirror._process = Process(command, tmp_path / "log", environment)
        try:
            mirror._process.wait_until(mirror._ready)
            with contextlib.ExitStack() as stack:
                await connect(mirror, 4 * LIMIT, stack)
            await answers(mirror)
            got = await asyncio.gather(*(get(mirror.url + BLOB + digest) for digest in blobs))
            assert [len(body) for body in got] == [len(data) + 1] * 8
            log = mirror.output()
            (line,) = (each for each in log.splitlines() if "open files" in each.lower())
            assert f"allows a process {LIMIT} open files" in line
            assert "[limits] connections " in line
            assert "LimitNOFILE" in line
            assert "Traceback" not in log
        finally:
            mirror.terminate()


async def test_where_the_limit_is_reached_one_line_says_so_and_clients_come_in_again(tmp_path):
    async with FakeRegistry() as upstream:
        mirror = MirrorProcess(tmp_path, {"docker.io": upstream.url}, measured=False)
        mirror.start()
        try:
            former = resource.prlimit(mirror.pid, resource.RLIMIT_NOFILE)
            few = open_files(mirror.pid) + 4
            resource.prlimit(mirror.pid, resource.RLIMIT_NOFILE, (few, former[1]))
            with contextlib.ExitStack() as stack:
                await connect(mirror, 50, stack)
                await until(lambda: LINE in mirror.output())
                await asyncio.sleep(2.5)  # asyncio tries again every second
                assert mirror.output().count("Too many open files") == 1
                assert "Traceback" not in mirror.output()
            resource.prlimit(mirror.pid, resource.RLIMIT_NOFILE, former)
            await answers(mirror)
        finally:
            mirror.kill()
