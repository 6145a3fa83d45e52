"""Clients that take their time, by the thousand: all are served, memory stays flat.

What the others notice is for `make bench` (beside-slow).
"""

import asyncio
import http.client
import json
import os
import resource
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.test_crowd import download
from tests.fakes import FakeRegistry, image, random_bytes
from tests.peers.mirror import MirrorProcess
from tests.peers.process import Process
from tests.peers.requirements import need
from tests.waiting import LIMIT_SECONDS, until

pytestmark = [pytest.mark.e2e, pytest.mark.long]

MIB = 1 << 20


@dataclass
class Readers:
    """A process full of slow clients; ``report`` is there once they have stopped."""

    process: Process
    report: dict[str, float]


@asynccontextmanager
async def slow_readers(mirror: MirrorProcess, log: Path, **orders: Any) -> AsyncIterator[Readers]:
    """Connections of another process, every one of which has its first bytes."""
    told = json.dumps({"port": mirror.port, **orders})
    process = Process([sys.executable, "-m", "tests.e2e.slow_readers", told], log)
    readers = Readers(process, {})
    try:
        await asyncio.to_thread(process.wait_until, lambda: "ready" in process.output())
        yield readers
    finally:
        await asyncio.to_thread(process.terminate)
    readers.report.update(json.loads(process.output().splitlines()[-1]))


def rss(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024


def descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    """What is started meanwhile may open as many files as the machine allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 8192:
        pytest.skip("needs more file descriptors (ulimit -Hn)")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@asynccontextmanager
async def mirror_of(upstream: FakeRegistry, directory: Path) -> AsyncIterator[MirrorProcess]:
    # They all come from one address here; on a busy machine the first ones wait for the last.
    limits = '[limits]\nconnections_per_client = 5000\nidle_timeout = "10m"\n'
    extra = limits + "[fill]\nconnections = 1\n"
    mirror = MirrorProcess(directory, {"docker.io": upstream.url}, extra, measured=False)
    await asyncio.to_thread(mirror.start)
    try:
        yield mirror
    finally:
        await asyncio.to_thread(mirror.terminate)


def blob(mirror: MirrorProcess, digest: str) -> str:
    return f"{mirror.url}/v2/library/app/blobs/{digest}"


async def pulled(mirror: MirrorProcess, digest: str) -> int:
    """The size of what another client gets."""
    (got,) = await download(blob(mirror, digest), "/dev/null")
    assert got.status == 200
    return got.size


async def test_a_thousand_slow_clients_are_served_beside_others_in_little_memory(
    tmp_path, upstream, many_descriptors
):
    need("curl")
    common, warm, cold = (upstream.add_blob(random_bytes(64 * MIB, seed=n)) for n in range(3))
    async with mirror_of(upstream, tmp_path) as mirror:
        for digest in (common, warm):
            await pulled(mirror, digest)
        before = descriptors(mirror.pid)
        orders = {"path": f"/v2/library/app/blobs/{common}", "readers": 1000, "rate": 64 * 1024}
        async with slow_readers(mirror, tmp_path / "readers", **orders) as readers:
            for digest in (warm, cold):
                assert await pulled(mirror, digest) == 64 * MIB
            most = rss(mirror.pid)
        await until(lambda: descriptors(mirror.pid) <= before + 10)
    print(f"{readers.report}\nRSS {most / MIB:.0f} MiB")
    assert (readers.report["closed"], upstream.sent[common]) == (0, 64 * MIB)
    assert most < 300 * MIB


def manifests(mirror: MirrorProcess, requests: int = 300) -> None:
    """Ask for one again and again on the same connection."""
    connection = http.client.HTTPConnection("127.0.0.1", mirror.port, timeout=LIMIT_SECONDS)
    for _ in range(requests):
        connection.request("GET", "/v2/library/app/manifests/latest")
        response = connection.getresponse()
        response.read()
        assert response.status == 200
    connection.close()


async def test_thousands_of_idle_and_dribbling_connections_cost_little_memory(
    tmp_path, upstream, many_descriptors
):
    upstream.add_image("library/app", image(b"layer"), "latest")
    async with mirror_of(upstream, tmp_path) as mirror:
        await asyncio.to_thread(manifests, mirror)
        before, open_before = rss(mirror.pid), descriptors(mirror.pid)
        async with slow_readers(mirror, tmp_path / "readers", idle=2000, loris=200):
            await until(lambda: descriptors(mirror.pid) >= open_before + 2200)
            await asyncio.to_thread(manifests, mirror)
            grown = rss(mirror.pid) - before
        await until(lambda: descriptors(mirror.pid) <= open_before + 10)
    print(f"RSS {grown / MIB:+.1f} MiB")
    assert grown < 100 * MIB


async def test_clients_that_read_a_byte_a_second_do_not_hold_up_a_growing_blob(
    tmp_path, upstream, many_descriptors
):
    need("curl")
    digest = upstream.add_blob(random_bytes(64 * MIB))
    upstream.hold(MIB)
    async with mirror_of(upstream, tmp_path) as mirror:
        before = rss(mirror.pid)
        orders = {"path": f"/v2/library/app/blobs/{digest}", "readers": 200, "rate": 1}
        async with slow_readers(mirror, tmp_path / "readers", window=4096, **orders) as readers:
            upstream.release()
            assert await pulled(mirror, digest) == 64 * MIB
            grown = rss(mirror.pid) - before
    print(f"{readers.report}\nRSS {grown / MIB:+.1f} MiB")
    assert upstream.sent[digest] == 64 * MIB
    assert grown < 100 * MIB
