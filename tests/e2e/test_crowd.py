"""Many clients at once on one cold blob; how long they wait is for `make bench` (cold-16)."""

import asyncio
import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.fakes import random_bytes
from tests.fakes.content import digest_of
from tests.peers.mirror import MirrorProcess
from tests.peers.requirements import need
from tests.waiting import LIMIT_SECONDS, limit

pytestmark = [pytest.mark.e2e]

MIB = 1 << 20
SIZE = 64 * MIB
CLIENTS = 32
KEPT = 3  # whose bytes are hashed afterwards; the others are counted


@dataclass(frozen=True)
class Download:
    status: int
    size: int


async def download(url: str, *outputs: Path | str) -> list[Download]:
    """One curl, so many transfers at once: clients that cost little beside what is measured."""
    form = '{"status": %{http_code}, "size": %{size_download}}\\n'
    command = ["curl", "--silent", "--no-progress-meter", "--write-out", form]
    command += ["--max-time", str(LIMIT_SECONDS)]
    command += ["--parallel", "--parallel-immediate", "--parallel-max", str(len(outputs))]
    for output in outputs:
        command += ["--output", str(output), url]
    child = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    printed, _ = await child.communicate()
    assert child.returncode == 0, f"curl exited {child.returncode}: {printed!r}"
    return [Download(**json.loads(line)) for line in printed.splitlines()]


@pytest.mark.long
async def test_a_crowd_on_a_cold_blob_costs_one_download(tmp_path, upstream):
    need("curl")
    kept = [tmp_path / f"kept{number}" for number in range(KEPT)]
    outputs = [*kept, *["/dev/null"] * (CLIENTS - KEPT)]
    fill = "[fill]\nconnections = 1\n"
    mirror = MirrorProcess(tmp_path / "mirror", {"docker.io": upstream.url}, fill, measured=False)
    digest = upstream.add_blob(random_bytes(SIZE))
    upstream.hold(MIB)
    await asyncio.to_thread(mirror.start)
    try:
        where = f"{mirror.url}/v2/library/app/blobs/{digest}"
        downloading = asyncio.create_task(download(where, *outputs))
        async with limit():
            while (await asyncio.to_thread(mirror.metrics))["mirror_clients_waiting"] < CLIENTS:
                await asyncio.sleep(0.05)
        upstream.release()
        limiter = await downloading
    finally:
        mirror.terminate()
    assert [(client.status, client.size) for client in limiter] == [(200, SIZE)] * CLIENTS
    assert all(digest_of(file.read_bytes()) == digest for file in kept)
    assert upstream.sent[digest] == SIZE
