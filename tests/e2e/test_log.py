"""What people and machines read of a mirror that runs."""

import asyncio
import json
import os
import re
import subprocess
import sys

import aiohttp
import pytest

from tests.fakes import FakeRegistry, image, random_bytes
from tests.peers.mirror import MirrorProcess
from tests.waiting import LIMIT_SECONDS, until

pytestmark = [pytest.mark.e2e]

REPO = "library/app"
APP = image(random_bytes(200_000, 1), random_bytes(200_000, 2), b"three", b"four")
PATHS = ["manifests/1", *(f"blobs/{digest}" for digest in APP.digests)]
LINE = re.compile(
    r"\S+ docker\.io/library/app:1  127\.0\.0\.1  Docker 28\.0  (miss|hit)  392 KiB in .+", re.ASCII
)


async def pull(url: str) -> None:
    """Ask over a connection for each object: the kernel chooses a worker for each."""
    for path in PATHS:
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"{url}/v2/{REPO}/{path}", headers={"User-Agent": "docker/28.0.1"}) as one,
        ):
            await one.read()


def log_of(mirror: MirrorProcess, name: str = "docker.io/library/app") -> list[str]:
    return [line for line in mirror.output().splitlines() if name in line]


@pytest.mark.long
@pytest.mark.parametrize("workers", [1, 3])
async def test_a_pull_is_one_line_by_however_many_processes_it_is_answered(
    tmp_path, upstream: FakeRegistry, workers
):
    upstream.add_image(REPO, APP, "1")
    mirror = MirrorProcess(tmp_path, {"docker.io": upstream.url}, workers=workers)
    await asyncio.to_thread(mirror.start)
    while (before := len(log_of(mirror))) < 3:
        await pull(mirror.url)
        await until(lambda before=before: len(log_of(mirror)) > before)  # type: ignore[misc]
    await pull(mirror.url)
    assert await asyncio.to_thread(mirror.terminate) == 0
    lines = log_of(mirror)
    assert len(lines) == 4, "the last one although the mirror ended"
    found = list(filter(None, map(LINE.fullmatch, lines)))
    assert [each[1] for each in found] == ["miss", "hit", "hit", "hit"]


@pytest.mark.long
async def test_a_log_for_machines_has_nothing_else(tmp_path, upstream):
    upstream.add_image(REPO, APP, "1")
    extra = '[log]\nformat = "json"\n'
    upstreams = {"docker.io": upstream.url, "gone.example": "http://127.0.0.1:1"}
    mirror = MirrorProcess(tmp_path, upstreams, extra, workers=2, cache='max_size = "900TiB"')
    await asyncio.to_thread(mirror.start)
    await pull(mirror.url)
    for _ in range(20):  # by both workers
        async with aiohttp.ClientSession() as session:
            url = f"{mirror.url}/v2/gone.example/app/manifests/1"
            async with session.get(url, headers={"User-Agent": "docker/28.0.1"}) as answer:
                assert answer.status == 502
    assert await asyncio.to_thread(mirror.terminate) == 0
    records = [json.loads(line) for line in mirror.output().splitlines()]
    (banner,) = (each for each in records if "listens on" in each["message"])
    assert banner["status"] == mirror.url
    assert re.fullmatch(r"900TiB, but the disk has [\d.]+ \wiB free", banner["max_size"])
    assert sum("does not answer" in each["message"] for each in records) == 1
    (failed,) = (each for each in records if each.get("result") == "failed")
    assert (failed["level"], failed["pulls"], failed["upstream"]) == ("warning", 20, "gone.example")
    assert "connection refused" in failed["detail"]
    ours = [each for each in records if each.get("repository") == REPO]
    assert sorted(each["message"] for each in ours) == ["pull", *["request"] * len(PATHS)]


@pytest.mark.long
async def test_a_terminal_gets_colours_the_time_of_a_clock_and_what_the_disk_can_hold(
    tmp_path, upstream
):
    upstream.add_image(REPO, APP, "1")
    mirror = MirrorProcess(tmp_path, {"docker.io": upstream.url}, cache='max_size = "900TiB"')
    file = mirror.write_configuration()
    outer, inner = os.openpty()
    environment = {**os.environ, "TERM": "xterm"}
    environment.pop("NO_COLOR", None)
    process = subprocess.Popen(
        [sys.executable, "-m", "mirror", "serve", "--config", str(file)],
        stdout=inner,
        stderr=inner,
        env=environment,
    )
    os.close(inner)
    try:
        await until(mirror._ready)
        await pull(mirror.url)
    finally:
        process.terminate()
        await asyncio.to_thread(process.wait, LIMIT_SECONDS)
    text = read_all(outer)
    clock = r"\x1b\[90m\d\d:\d\d:\d\d\x1b\[0m"
    found = re.search(
        clock + r" docker\.io/library/app:1  .*  \x1b\[33mmiss\x1b\[0m  392 KiB", text
    )
    assert found, text
    assert re.search(r"\(at most 900TiB, but the disk has [\d.]+ \wiB free\)", text)
    assert f"{mirror.url} in a browser" in text


def read_all(terminal: int) -> str:
    data = b""
    try:
        while piece := os.read(terminal, 65536):
            data += piece
    except OSError:  # EIO: no process has the terminal any more
        pass
    os.close(terminal)
    return data.decode()
