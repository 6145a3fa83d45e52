"""``mirror ls``, ``rm`` and ``verify`` as they are typed, beside two workers and without any."""

import json
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import aiohttp
import pytest

from mirror import __version__
from mirror.store.local.disk_usage import in_blocks
from tests.cli.test_images import for_platform
from tests.fakes import FakeRegistry, image, random_bytes
from tests.peers.mirror import MirrorProcess
from tests.peers.process import Process
from tests.waiting import LIMIT_SECONDS

pytestmark = [pytest.mark.e2e, pytest.mark.long]

APP = for_platform("amd64", random_bytes(90_000, 1), random_bytes(3_000_000, 2))
TOOL = image(random_bytes(20_000, 3))
NAME = "docker.io/library/app:1"
AGO = r"(just now|\d+ minutes? ago)"


class Site:
    """A mirror, and its commands."""

    def __init__(self, mirror: MirrorProcess) -> None:
        self.mirror = mirror

    def command(self, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        name, *rest = arguments
        config = str(self.mirror.directory / "mirror.toml")
        done = subprocess.run(
            [sys.executable, "-m", "mirror", name, "--config", config, *rest],
            capture_output=True,
            text=True,
            timeout=LIMIT_SECONDS,
            check=False,
        )
        assert done.returncode == code, done.stderr
        assert "Traceback" not in done.stderr
        return done

    def json(self, *arguments: str) -> dict[str, Any]:
        return json.loads(self.command(*arguments, "--json").stdout)

    def stats(self, requests: int) -> dict[str, Any]:
        """The figures once all requests are in them; each worker writes a second later."""
        deadline = time.monotonic() + LIMIT_SECONDS
        while (found := self.json("stats"))["total"]["requests"] != requests:
            assert time.monotonic() < deadline, found
        return found

    async def get(self, path: str, times: int = 1) -> list[tuple[int, bytes]]:
        """Ask over a new connection each time, which may be any worker's; twice over each."""
        answers = []
        for _ in range(times):
            async with aiohttp.ClientSession() as session:
                for _ in range(2):
                    async with session.get(f"{self.mirror.url}/v2/library/{path}") as answer:
                        answers.append((answer.status, await answer.read()))
                # A connection that ends at once may end before its last answer is counted.
                await session.get(f"{self.mirror.url}/v2/")
        return answers


@pytest.fixture
async def upstream() -> AsyncIterator[FakeRegistry]:
    async with FakeRegistry() as registry:
        registry.add_image("library/app", APP, "1")
        registry.add_image("library/tool", TOOL, "1")
        yield registry


@pytest.fixture
def site(tmp_path, upstream) -> Iterator[Site]:
    mirror = MirrorProcess(tmp_path, {"docker.io": upstream.url}, workers=2)
    mirror.start()
    try:
        yield Site(mirror)
    finally:
        mirror.terminate()


@pytest.mark.usefixtures("one_day")
async def test_commands_see_and_change_what_all_workers_serve(site, upstream):
    paths = ["app/manifests/1", *(f"app/blobs/{digest}" for digest in APP.digests)]
    for path in paths:  # often enough that each worker has it at hand, hot
        assert {status for status, _ in await site.get(path, 8)} == {200}

    (app,) = site.json("ls")["images"]
    assert (app["name"], app["whole"], app["bytes"]) == (NAME, True, 3_090_000 + _overhead())
    header, row, total = site.command("ls").stdout.splitlines()
    assert header.split() == ["IMAGE", "PLATFORM", "SIZE", "THERE", "USED"]
    assert re.match(rf"{NAME}  linux/amd64  2\.9 MiB  whole  {AGO}", row)
    assert total.startswith("1 image, 2.9 MiB (shared data counted once); the cache has 3.0 MiB")

    stats = site.stats(16 * len(paths))
    assert stats["running"]["processes"] == 2
    assert stats["total"] == stats["today"]
    got = stats["total"]["upstream_bytes"]  # each worker may fetch what is small for itself
    assert app["bytes"] <= got < 2 * app["bytes"]
    assert stats["total"]["saved_bytes"] == 16 * app["bytes"] - got
    whole = sum(in_blocks(len(each), 4096) for each in (APP.manifest, *APP.blobs))
    assert stats["cache"]["bytes"] == whole, "whole blocks of the disk"
    lines = site.command("stats").stdout.splitlines()
    assert re.fullmatch(
        rf"mirror {re.escape(__version__)} runs in 2 processes, started {AGO}", lines[0]
    )
    assert "cache: 3.0 MiB of 50 GiB in 4 objects" in lines

    await upstream.stop()
    would = site.command("rm", NAME, "--dry-run").stdout
    assert would == f"would drop {NAME}\n4 objects, 2.9 MiB would be freed\n"
    assert {status for status, _ in await site.get(paths[0], 4)} == {200}
    done = site.command("rm", NAME).stdout
    assert done == f"dropped {NAME}\n4 objects, 2.9 MiB freed\n"
    for path in paths:  # nobody remembers it, not for a moment
        assert {status for status, _ in await site.get(path, 8)} == {502}
    assert site.json("ls")["images"] == []
    failed = site.command("rm", NAME, code=1)
    assert (failed.stdout, failed.stderr) == ("", f"mirror: {NAME} is not cached\n")


async def test_what_is_being_sent_when_it_is_dropped_arrives_whole(site):
    path = f"app/blobs/{APP.digests[2]}"
    await site.get(path)
    await site.get("app/manifests/1")
    async with (
        aiohttp.ClientSession(read_bufsize=2**14) as session,
        session.get(f"{site.mirror.url}/v2/library/{path}") as answer,
    ):
        start = await answer.content.readexactly(1000)
        site.command("rm", NAME)
        assert start + await answer.read() == APP.blobs[2]


@pytest.mark.usefixtures("one_day")
async def test_without_a_mirror_the_directory_says_the_same(site):
    for path in ["app/manifests/1", "tool/manifests/1"]:
        await site.get(path)
    for digest in APP.digests:
        await site.get(f"app/blobs/{digest}")
    running = site.json("ls")
    before = site.stats(2 * 5)
    site.mirror.terminate()
    alone = site.json("ls")
    assert {**before, "running": None} == site.json("stats")
    assert site.command("stats").stdout.startswith("no mirror runs on this cache directory\n")
    assert [each["name"] for each in alone["images"]] == [NAME, "docker.io/library/tool:1"]
    for one, other in zip(running["images"], alone["images"], strict=True):
        assert one == {**other, "last_used": one["last_used"]}
    assert site.json("verify") == {"objects": 5, "bytes": alone["total"]["bytes"], "damaged": []}
    row = site.command("ls", "tool").stdout.splitlines()[1]
    assert re.search(rf"  lacks 19\.6 KiB  {AGO}", row)
    assert site.json("rm", "app:1", "tool:1")["bytes"] == alone["total"]["bytes"]
    assert site.json("ls")["cache"]["objects"] == 0


async def test_what_a_verification_drops_is_forgotten_by_all_workers(site, upstream):
    path = f"app/blobs/{APP.digests[1]}"
    await site.get(path, 8)
    await upstream.stop()
    (file,) = site.mirror.directory.glob(f"cache/blobs/*/*/{APP.digests[1][7:]}.*")
    file.write_bytes(b"x" * 90_000)
    found = json.loads(site.command("verify", "--json", code=1).stdout)
    assert found["damaged"] == [{"kind": "blobs", "digest": APP.digests[1]}]
    assert {status for status, _ in await site.get(path, 8)} == {502}


async def test_what_one_worker_is_asked_for_is_kept_whichever_worker_downloads_it(
    tmp_path, upstream, monkeypatch
):
    monkeypatch.setenv("MIRROR_CACHE__MAX_SIZE", "6MiB")
    others = [image(random_bytes(1_000_000, seed), marker=str(seed)) for seed in range(10, 14)]
    for number, each in enumerate(others):
        upstream.add_image(f"library/other{number}", each, "1")
    keep = '[[keep]]\nimages = ["docker.io/library/app:*"]\n'
    mirror = MirrorProcess(tmp_path, {"docker.io": upstream.url}, keep, workers=2)
    mirror.start()
    site = Site(mirror)
    try:
        paths = ["app/manifests/1", *(f"app/blobs/{digest}" for digest in APP.digests)]
        for path in paths:
            await site.get(path)
        for number, each in enumerate(others):
            for path in ("manifests/1", *(f"blobs/{digest}" for digest in each.digests)):
                await site.get(f"other{number}/{path}")
        (app,) = site.json("ls", "app")["images"]
        assert (app["whole"], app["kept"]) == (True, True)
        assert mirror.metrics()["mirror_evictions_total"] > 0
        refused = site.command("rm", NAME, code=1).stderr
        assert refused == (
            f"mirror: {NAME}: kept by [[keep]] in the configuration; --force drops it anyway\n"
        )
        await upstream.stop()
        for path in paths[1:]:
            assert {status for status, _ in await site.get(path, 2)} == {200}
    finally:
        mirror.terminate()


def _overhead() -> int:
    return len(APP.manifest) + len(APP.blobs[0])


def test_commands_say_mistakes_of_the_configuration_in_one_line(tmp_path):
    config = tmp_path / "mirror.toml"
    config.write_text('[cache]\nmax_size = "lots"\n')
    process = Process(
        [sys.executable, "-m", "mirror", "ls", "--config", str(config)], tmp_path / "log"
    )
    assert process.wait() == 2
    assert process.output().startswith(f"mirror: {config}: cache.max_size: found 'lots'")
