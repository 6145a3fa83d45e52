"""The files in which workers share their figures: a place that is full, or gone, costs no pull."""

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.test_workers import get, gone, workers_of
from tests.fakes import FakeRegistry, random_bytes
from tests.peers.mirror import MirrorProcess
from tests.peers.process import Process
from tests.peers.requirements import need
from tests.waiting import until

pytestmark = [pytest.mark.e2e, pytest.mark.long]

MIB = 1 << 20
SHARED_MEMORY = Path("/dev/shm")
BLOB = "/v2/library/app/blobs/"


def directory_of(worker: int) -> Path | None:
    """Where a worker writes its figures."""
    found = SHARED_MEMORY.glob(f"mirror-figures-*/counter_{worker}.db")
    return next((path.parent for path in found), None)


def of(directory: Path, upstream: str) -> MirrorProcess:
    return MirrorProcess(directory, {"docker.io": upstream}, workers=2, measured=False)


async def test_what_a_killed_mirror_left_is_removed_and_what_another_uses_is_not(tmp_path):
    need(root=not os.access(SHARED_MEMORY, os.W_OK))
    killed, other, third = (of(tmp_path / name, "http://127.0.0.1:9") for name in "abc")
    with contextlib.ExitStack() as stack:
        for mirror in (killed, other):
            mirror.start()
            stack.callback(mirror.kill)
        left, used = (directory_of(workers_of(mirror)[0]) for mirror in (killed, other))
        assert left is not None
        assert used is not None
        workers = workers_of(killed)
        killed.kill()
        await until(lambda: all(map(gone, workers)))
        # Any mirror that starts removes it: that of another test may have been the first.
        third.start()
        stack.callback(third.kill)
        assert not left.exists()
        assert used.exists()


async def test_a_directory_that_is_removed_costs_no_pull(tmp_path):
    data = random_bytes(MIB)
    async with FakeRegistry() as upstream:
        digest = upstream.add_blob(data)
        mirror = of(tmp_path, upstream.url)
        mirror.start()
        try:
            workers = workers_of(mirror)
            directory = directory_of(workers[0])
            assert directory is not None
            # At one moment: the workers write there.
            shutil.rmtree(directory.rename(SHARED_MEMORY / f"mirror-tests-{directory.name}"))
            for _ in range(8):
                assert await get(mirror.url + BLOB + digest) == data
            assert "mirror_requests_total" in (await get(mirror.url + "/metrics")).decode()
            assert workers_of(mirror) == workers
            assert "Traceback" not in mirror.output()
        finally:
            mirror.kill()


@contextlib.contextmanager
def on_small_shared_memory(directory: Path, upstream: str, kib: int) -> Iterator[MirrorProcess]:
    """A mirror that sees a /dev/shm of its own, of that size."""
    mirror = of(directory, upstream)
    directory.mkdir(exist_ok=True)
    config = mirror.write_configuration()
    mount = f'mount -t tmpfs -o size={kib}k tmpfs /dev/shm && exec "$@"'
    serve = [sys.executable, "-m", "mirror", "serve", "--config", str(config)]
    environment = {name: value for name, value in os.environ.items() if name[:3] != "COV"}
    command = ["unshare", "--mount", "sh", "-c", mount, "sh", *serve]
    process = Process(command, directory / "log", environment)
    mirror._process = process
    try:
        process.wait_until(mirror._ready)
        yield mirror
    finally:
        process.terminate()


@pytest.mark.parametrize("kib", [4, 64, 200, 400])
async def test_a_full_shared_memory_costs_no_pull_and_is_said_once(tmp_path, kib):
    need("unshare", "mount", root=True)
    if subprocess.run(["unshare", "--mount", "true"], check=False).returncode:
        pytest.skip("no mount namespaces here")
    async with FakeRegistry() as upstream:
        blobs = [upstream.add_blob(random_bytes(1000, seed)) for seed in range(20)]
        with on_small_shared_memory(tmp_path, upstream.url, kib) as mirror:
            workers = workers_of(mirror)
            for digest in blobs * 2:
                await get(mirror.url + BLOB + digest)
            assert b"mirror_" in await get(mirror.url + "/metrics")
            assert workers_of(mirror) == workers, mirror.output()
            log = mirror.output()
            assert "Traceback" not in log
            assert log.count("No space left") <= len(workers) + 1
            assert log.count("No space left") > 0
