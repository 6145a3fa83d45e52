"""A cache on a disk that is far too small, is filled by somebody else, or turns read-only."""

import asyncio
import contextlib
import hashlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from tests.fakes import FakeRegistry, image, random_bytes
from tests.fakes.content import Image
from tests.peers.mirror import MirrorProcess
from tests.peers.requirements import lacking
from tests.waiting import limit

pytestmark = [pytest.mark.slow, pytest.mark.long]


MIB = 1 << 20


@contextlib.contextmanager
def mounted(directory: Path, size: str, inodes: int = 0) -> Iterator[Path]:
    directory.mkdir()
    options = f"size={size},nr_inodes={inodes}" if inodes else f"size={size}"
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(directory)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        lacking("needs to mount a tmpfs (root)")
    try:
        yield directory
    finally:
        subprocess.run(["umount", "-l", str(directory)], check=True)


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    with mounted(tmp_path / "disk", "64m") as disk:
        yield disk


@pytest.fixture
def mirror(small_disk, tmp_path, upstream: FakeRegistry) -> Iterator[MirrorProcess]:
    with mirror_on(small_disk, tmp_path, upstream) as mirror:
        yield mirror


@contextlib.contextmanager
def mirror_on(disk: Path, tmp_path: Path, upstream: FakeRegistry) -> Iterator[MirrorProcess]:
    mirror = MirrorProcess(tmp_path / "mirror", {"docker.io": upstream.url})
    (tmp_path / "mirror").mkdir()
    (tmp_path / "mirror" / "cache").symlink_to(disk)
    try:
        yield mirror
    finally:
        mirror.terminate()


@pytest.fixture
def few_inodes(tmp_path) -> Iterator[Path]:
    with mounted(tmp_path / "disk", "256m", inodes=700) as disk:
        yield disk


async def pulled(mirror: MirrorProcess, digests: list[str]) -> None:
    async with aiohttp.ClientSession() as session:
        for digest in digests:
            async with session.get(f"{mirror.url}/v2/library/app/blobs/{digest}") as response:
                assert response.status == 200
                data = await response.read()
                assert f"sha256:{hashlib.sha256(data).hexdigest()}" == digest


async def test_more_small_blobs_than_the_disk_has_inodes_are_kept_in_turn(
    few_inodes, tmp_path, upstream
):
    digests = [upstream.add_blob(b"%d" % number) for number in range(900)]
    with mirror_on(few_inodes, tmp_path, upstream) as mirror:
        await asyncio.to_thread(mirror.start)
        await pulled(mirror, digests)
        figures = await asyncio.to_thread(mirror.metrics)
        assert figures["mirror_evictions_total"] > 200
        before = upstream.count("blob")
        await pulled(mirror, digests[-50:])
        assert upstream.count("blob") == before, "what came last is there"
        assert "nothing is kept" not in mirror.output()


async def test_inodes_that_somebody_else_takes_are_told_and_made_up_for(
    few_inodes, tmp_path, upstream
):
    digests = [upstream.add_blob(b"%d" % number) for number in range(120)]
    with mirror_on(few_inodes, tmp_path, upstream) as mirror:
        await asyncio.to_thread(mirror.start)
        await pulled(mirror, digests[:100])
        with contextlib.suppress(OSError):
            for number in range(1000):
                (few_inodes / f"junk{number}").touch()
        await pulled(mirror, digests[100:])
        assert (await asyncio.to_thread(mirror.metrics))["mirror_evictions_total"] > 0
        before = upstream.count("blob")
        await pulled(mirror, digests[-1:])
        assert upstream.count("blob") == before, "others went for it"
        assert mirror.output().count("no inodes left") <= 2
        assert "Traceback" not in mirror.output()


async def test_a_disk_without_any_inode_for_the_cache_passes_pulls_through(
    few_inodes, tmp_path, upstream
):
    digests = [upstream.add_blob(b"%d" % number) for number in range(4)]
    with mirror_on(few_inodes, tmp_path, upstream) as mirror:
        await asyncio.to_thread(mirror.start)
        with contextlib.suppress(OSError):
            for number in range(1000):
                (few_inodes / f"junk{number}").touch()
        await pulled(mirror, digests * 2)
        assert upstream.count("blob") >= 8
        async with limit():
            while "no inodes left" not in mirror.output():
                await asyncio.sleep(0.05)
        assert "Traceback" not in mirror.output()


async def pull(mirror: MirrorProcess, upstream: FakeRegistry, name: str, pulled: Image) -> int:
    """Pull an image as clients do; the number of blob requests upstream saw."""
    before = upstream.count("blob")
    async with aiohttp.ClientSession() as session:

        async def digest_of(path: str) -> str:
            hasher = hashlib.sha256()
            async with session.get(f"{mirror.url}/v2/library/{name}/{path}") as response:
                assert response.status == 200
                async for piece in response.content.iter_any():
                    hasher.update(piece)
            return f"sha256:{hasher.hexdigest()}"

        assert await digest_of("manifests/1") == pulled.digest
        for digest in pulled.digests:
            assert await digest_of(f"blobs/{digest}") == digest
    async with limit():  # what was sent is adopted a moment later
        while (await asyncio.to_thread(mirror.metrics))["mirror_fills_in_progress"]:
            await asyncio.sleep(0.05)
    return upstream.count("blob") - before


async def until_kept(
    mirror: MirrorProcess, upstream: FakeRegistry, name: str, pulled: Image
) -> None:
    """Pull until it comes from the cache: the mirror looks at its disk every five seconds."""
    async with limit():
        while await pull(mirror, upstream, name, pulled):
            await asyncio.sleep(0.5)


def add(upstream: FakeRegistry, name: str, *sizes: int) -> Image:
    layers = (random_bytes(size, seed) for seed, size in enumerate(sizes))
    added = image(*layers, marker=name)
    upstream.add_image(f"library/{name}", added, "1")
    return added


async def test_an_image_four_times_the_disk_is_pulled_and_small_ones_are_kept(mirror, upstream):
    large = add(upstream, "large", 100 * MIB, 150 * MIB, 6 * MIB)
    small = add(upstream, "small", 3 * MIB, 4 * MIB)
    await asyncio.to_thread(mirror.start)
    assert await pull(mirror, upstream, "small", small) == 3
    assert await pull(mirror, upstream, "large", large) >= 4
    assert await pull(mirror, upstream, "small", small) == 0, "it was kept all the while"
    asked = len(upstream.seen)
    await pull(mirror, upstream, "large", large)
    again = {seen.path.rpartition("/")[2] for seen in upstream.seen[asked:]}
    assert again == set(large.digests[1:3]), "what fits is kept of the large one too"
    assert "large: no room in the cache for" in mirror.output()
    assert "Traceback" not in mirror.output()


async def test_a_disk_that_somebody_else_fills_is_told_once_and_used_again(
    mirror, upstream, small_disk
):
    images = [add(upstream, f"app{number}", MIB * number, 2 * MIB) for number in range(1, 5)]
    await asyncio.to_thread(mirror.start)
    assert await pull(mirror, upstream, "app1", images[0]) == 3
    with (small_disk / "junk").open("wb") as junk, contextlib.suppress(OSError):
        while True:
            os.write(junk.fileno(), bytes(4096))
    for number, pulled in enumerate(images[1:], 2):
        assert await pull(mirror, upstream, f"app{number}", pulled) >= 3
    (small_disk / "junk").unlink()
    await until_kept(mirror, upstream, "app4", images[3])
    assert "Traceback" not in mirror.output()
    lines = [line for line in mirror.output().splitlines() if "nothing is kept" in line]
    assert 1 <= len(lines) <= 2
    assert all("free some space, or lower max_size" in line for line in lines)
    assert " info sha256:" not in mirror.output(), "no line for each blob"


async def test_a_mirror_starts_and_serves_on_a_disk_that_is_full_or_read_only(
    mirror, upstream, small_disk
):
    app = add(upstream, "app", MIB)
    await asyncio.to_thread(mirror.start)
    assert await pull(mirror, upstream, "app", app) == 2
    mirror.terminate()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    await asyncio.to_thread(mirror.start)
    await pull(mirror, upstream, "app", app)
    assert "mount it for writing" in mirror.output()
    (kept, *figures) = await problems(mirror)
    assert kept["title"] == "Nothing is kept: Read-only file system"
    assert kept["remedy"] == "the file system is read-only: mount it for writing"
    assert all(each["title"].startswith("Figures are not being written") for each in figures)
    async with aiohttp.ClientSession() as session, session.get(f"{mirror.url}/live") as answer:
        assert "Nothing is kept: Read-only file system" in await answer.text()
    for path in ("/images", "/image?name=docker.io/library/app:1", "/api/v1/stats"):
        async with aiohttp.ClientSession() as session, session.get(mirror.url + path) as answer:
            assert (answer.status, "the cache cannot be read" in (await answer.text()).lower()) == (
                503,
                True,
            )
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    await until_kept(mirror, upstream, "app", app)
    assert mirror.output().count("/cache: works again") == 1
    async with limit():
        while await problems(mirror):
            await asyncio.sleep(0.1)


async def problems(mirror: MirrorProcess) -> list[dict[str, str]]:
    """The troubles that the status page shows first."""
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"{mirror.url}/api/v1/problems") as answer,
    ):
        told: list[dict[str, str]] = (await answer.json())["problems"]
        return sorted(told, key=lambda problem: problem["title"], reverse=True)


async def test_a_cache_directory_removed_under_the_running_mirror_is_made_again(tmp_path, upstream):
    app = add(upstream, "app", MIB)
    mirror = MirrorProcess(tmp_path / "mirror", {"docker.io": upstream.url})
    await asyncio.to_thread(mirror.start)
    try:
        assert await pull(mirror, upstream, "app", app) == 2
        removed = (tmp_path / "mirror" / "cache").rename(tmp_path / "removed")  # at one moment
        subprocess.run(["rm", "-rf", str(removed)], check=True)
        assert await pull(mirror, upstream, "app", app) == 2
        await until_kept(mirror, upstream, "app", app)
        assert "Traceback" not in mirror.output()
    finally:
        mirror.terminate()
