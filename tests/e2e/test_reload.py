"""SIGHUP, as the operator and systemd send it."""

import asyncio
import json
import os
import re
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import pytest

from tests.fakes import FakeRegistry, image, random_bytes
from tests.peers.mirror import MirrorProcess
from tests.waiting import LIMIT_SECONDS, limit, until

pytestmark = [pytest.mark.e2e]

MIB = 1 << 20
REPO = "library/app"
APP = image(b"layer")
ANOTHER_SECRET = (
    "reload: [cluster] secret_file has another secret, which is used in 5 minutes; the former one "
    "is accepted for 10 minutes"
)
EXTRA = '[tags]\nmax_age = "5m"\n[limits]\nqueue = 7\n'


@contextmanager
def started(directory: Path, upstream: str, workers: int = 1) -> Iterator[MirrorProcess]:
    mirror = MirrorProcess(directory, {"docker.io": upstream}, workers=workers)
    mirror.start()
    try:
        yield mirror
    finally:
        mirror.kill()


def rewritten(mirror: MirrorProcess, extra: str) -> None:
    mirror.extra = extra
    mirror.write_configuration()
    os.kill(mirror.pid, signal.SIGHUP)


def told(mirror: MirrorProcess) -> list[str]:
    """What it said of reloads, without the time."""
    lines = (line.partition(" ")[2] for line in mirror.output().splitlines())
    return [line for line in lines if re.match(r"\w+ (not )?reload(ed)?[:,] ", line)]


@pytest.mark.long
@pytest.mark.parametrize("workers", [1, 2])
async def test_a_reload_under_load_drops_nothing_and_says_what_changed(tmp_path, workers):
    data = random_bytes(4 * MIB)
    async with FakeRegistry() as upstream:
        digest = upstream.add_blob(data)
        upstream.hold(MIB)
        upstream.add_image(REPO, APP, "1")
        with started(tmp_path, upstream.url, workers) as mirror:
            async with aiohttp.ClientSession() as session:
                tag, blob = (
                    f"{mirror.url}/v2/{REPO}/{end}" for end in ("manifests/1", f"blobs/{digest}")
                )
                pull = asyncio.create_task(get(session, blob))
                stop = asyncio.Event()
                loads = [asyncio.create_task(pulls(session, tag, stop)) for _ in range(4)]
                await until(lambda: upstream.sent[digest] > 0)
                rewritten(mirror, EXTRA)
                await until(lambda: "reloaded: " in mirror.output())
                rewritten(mirror, "[log]\naccess = false\n[server]\n")
                await until(lambda: "not reloaded" in mirror.output())
                await until_figure(mirror, "mirror_config_last_reload_successful", 0)
                upstream.release()
                stop.set()
                assert sum(await asyncio.gather(*loads)) > 0
                assert await pull == data
            lines = told(mirror)
    assert lines[:3] == [
        "info reload: limits.queue = 1000 -> 7",
        'info reload: tags.max_age = "60s" -> "5m"',
        "info reloaded: 2 changed, 0 wait for a restart",
    ]
    (mistake,) = lines[3:]
    assert mistake.startswith(f"error not reloaded, the former configuration stays: {tmp_path}")
    assert "is not TOML" in mistake
    assert upstream.sent[digest] == len(data)


@pytest.mark.long
@pytest.mark.parametrize("workers", [1, 2])
async def test_the_page_says_that_a_reload_was_refused_until_one_succeeds(tmp_path, workers):
    async with FakeRegistry() as upstream:
        with started(tmp_path, upstream.url, workers) as mirror:
            async with aiohttp.ClientSession() as session:

                async def titles() -> list[str]:
                    problems = json.loads(await get(session, f"{mirror.url}/api/v1/problems"))
                    return [each["title"] for each in problems["problems"]]

                rewritten(mirror, "[server]\nlisten = 7\n")
                async with limit():
                    while await titles() != ["the configuration was not reloaded"]:
                        await asyncio.sleep(0.05)
                rewritten(mirror, "")
                async with limit():
                    while await titles():
                        await asyncio.sleep(0.05)


@pytest.mark.long
@pytest.mark.parametrize("workers", [1, 2])
async def test_a_reload_of_a_cluster_says_what_changed(tmp_path, workers):
    secret, own = tmp_path / "secret", "http://127.0.0.1:1"
    secret.write_text("s" * 32)
    table = f'[cluster]\nsecret_file = "{secret}"\nadvertise = "{own}"\npeers = ["{own}"'
    async with FakeRegistry() as upstream:
        mirror = MirrorProcess(tmp_path, {"docker.io": upstream.url}, f"{table}]\n")
        mirror.workers = workers
        mirror.start()
        try:
            secret.write_text("t" * 32)
            rewritten(mirror, f'{table}, "http://127.0.0.1:2"]\n')
            await until(lambda: "reloaded: 1 changed" in mirror.output())
            await until(lambda: mirror.output().count(ANOTHER_SECRET) == workers)
            rewritten(mirror, f'{table}]\nstate = "redis://127.0.0.1:3"\n')
            await until(lambda: "reloaded: 0 changed, 2 wait" in mirror.output())
            lines = told(mirror)
        finally:
            mirror.kill()
    assert f'info reload: cluster.peers = ["{own}"] -> ["{own}", "http://127.0.0.1:2"]' in lines
    assert (
        'warning reload: cluster.state = "" -> "redis://127.0.0.1:3" (waits for a restart)' in lines
    )


async def until_figure(mirror: MirrorProcess, name: str, value: float) -> None:
    async with limit():
        while (await asyncio.to_thread(mirror.metrics))[name] != value:
            await asyncio.sleep(0.05)


async def get(session: aiohttp.ClientSession, url: str) -> bytes:
    async with session.get(url) as response:
        assert response.status == 200
        return await response.read()


async def pulls(session: aiohttp.ClientSession, url: str, stop: asyncio.Event) -> int:
    count = 0
    while not stop.is_set():
        assert await get(session, url) == APP.manifest
        count += 1
    return count


@pytest.mark.long
async def test_what_needs_a_restart_is_told_and_flags_still_win(tmp_path, upstream, monkeypatch):
    monkeypatch.setenv("MIRROR_TAGS__MAX_AGE", "7m")
    with started(tmp_path, upstream.url) as mirror:
        port, mirror.port = mirror.port, mirror.port + 1
        rewritten(mirror, EXTRA)
        await until(lambda: "reloaded: " in mirror.output())
        mirror.port = port
        places = f'"127.0.0.1:{port}" -> "127.0.0.1:{port + 1}"'
        assert told(mirror) == [
            f"warning reload: server.listen = {places} (waits for a restart)",
            "info reload: limits.queue = 1000 -> 7",
            "info reloaded: 1 changed, 1 wait for a restart",
        ], "the environment wins over the file's tags.max_age"
        assert (await asyncio.to_thread(mirror.metrics))["mirror_clients_waiting"] == 0


@pytest.mark.long
@pytest.mark.parametrize("workers", [1, 2])
async def test_workers_and_all_go_by_the_new_configuration(tmp_path, workers):
    async with FakeRegistry() as upstream:
        upstream.add_image(REPO, APP, "1")
        with started(tmp_path, upstream.url, workers) as mirror:
            loaded = "mirror_config_last_reload_success_timestamp_seconds"
            before = (await asyncio.to_thread(mirror.metrics))[loaded]
            rewritten(mirror, 'deny = ["library/*"]\n')
            await until(lambda: "reloaded: " in mirror.output())
            await until_figure(mirror, "mirror_config_last_reload_successful", 1)
            assert (await asyncio.to_thread(mirror.metrics))[loaded] > before
            for _ in range(8):  # connections are spread over workers
                url = f"{mirror.url}/v2/{REPO}/manifests/1"
                async with aiohttp.ClientSession() as session, session.get(url) as response:
                    assert response.status == 403


@pytest.mark.long
@pytest.mark.parametrize("workers", [1, 2])
async def test_systemd_is_told_of_both_ends(tmp_path, upstream, monkeypatch, workers):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(LIMIT_SECONDS)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        with started(tmp_path, upstream.url, workers) as mirror:
            assert systemd.recv(256) == b"READY=1"
            rewritten(mirror, EXTRA)
            told = [await asyncio.to_thread(systemd.recv, 256) for _ in range(2)]
    assert told[0].startswith(b"RELOADING=1\nMONOTONIC_USEC=")
    assert int(told[0].partition(b"USEC=")[2]) <= time.clock_gettime(time.CLOCK_MONOTONIC) * 1e6
    assert told[1] == b"READY=1"
