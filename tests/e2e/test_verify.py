"""``mirror verify`` as it is typed."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fakes import FakeRegistry, random_bytes
from tests.running import eventually, running
from tests.waiting import LIMIT_SECONDS

pytestmark = [pytest.mark.slow, pytest.mark.long]


async def verify(directory: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """In a thread: the mirror in this process is told of what is dropped."""
    return await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "mirror", "verify", "--cache-dir", str(directory), *command],
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
        check=False,
    )


@pytest.fixture
async def cache(tmp_path, upstream: FakeRegistry):
    """A cache of five blobs, and its mirror still running."""
    async with running(tmp_path / "cache", {"docker.io": upstream.url}) as mirror:
        for seed in range(5):
            digest = upstream.add_blob(random_bytes(10_000, seed))
            await mirror.get(f"/v2/app/blobs/{digest}")
        await eventually(mirror, "mirror_cache_objects", 5)  # adopted after the client has it
        yield tmp_path / "cache"


async def test_a_sound_cache_is_said_to_be_sound(cache):
    done = await verify(cache)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "5 objects, 48.8 KiB: 0 damaged\n"


async def test_what_is_damaged_is_named_and_dropped(cache):
    file = next(file for file in (cache / "blobs").rglob("*") if file.is_file())
    times = file.stat().st_atime_ns, file.stat().st_mtime_ns
    file.write_bytes(b"x" * 10_000)
    os.utime(file, ns=times)
    done = await verify(cache)
    name = file.name.partition(".")[0]
    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        f"damaged, dropped: blobs.sha256.{name}",
        "5 objects, 48.8 KiB: 1 damaged",
    ]
    assert (await verify(cache)).stdout == "4 objects, 39.1 KiB: 0 damaged\n"


async def test_a_misspelt_directory_is_not_made(tmp_path):
    done = await verify(tmp_path / "cach")
    assert done.returncode == 1
    assert done.stderr == (
        f"mirror: the cache directory {tmp_path / 'cach'} cannot be used: No such file or "
        "directory; name another with --cache-dir or [cache] directory\n"
    )
    assert not (tmp_path / "cach").exists()
