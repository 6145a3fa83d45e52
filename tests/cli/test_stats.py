"""The figures of a mirror, told to whoever operates it."""

import asyncio
import re

import aiohttp
import pytest

from mirror.admin.commands import stats
from mirror.cli.stats import print_statistics
from mirror.config import load
from mirror.store.local.disk_usage import in_blocks
from tests.fakes import FakeRegistry, image, random_bytes
from tests.fakes.content import digest_of
from tests.running import eventually, running
from tests.waiting import limit

APP = image(random_bytes(40_000, 1))
SLOW = random_bytes(3_000_000, 2)


@pytest.fixture
async def upstream():
    async with FakeRegistry() as registry:
        registry.add_image("library/app", APP, "1")
        registry.add_blob(SLOW)
        yield registry


def config_of(directory, upstream, **sections):
    tree = {"cache": {"directory": str(directory)}, **sections}
    return load(None, {**tree, "upstreams": {"docker.io": {"url": upstream.url}}})


@pytest.mark.usefixtures("one_day")
async def test_it_says_what_was_saved_how_full_the_cache_is_and_how_upstreams_are(
    tmp_path, upstream
):
    keep = [{"images": ["app:1"]}]
    config = config_of(tmp_path, upstream, keep=keep)
    async with running(tmp_path, {"docker.io": upstream.url}, keep=keep) as mirror:
        for _ in range(4):
            await mirror.get("/v2/library/app/manifests/1")
            for digest in APP.digests:
                await mirror.get(f"/v2/library/app/blobs/{digest}")
        await mirror.get("/v2/library/app/manifests/none")
        await eventually(mirror, "mirror_cache_objects", 3)
        found = await stats(config)
        size = len(APP.manifest) + sum(map(len, APP.blobs))
        blocks = sum(in_blocks(len(each), 4096) for each in (APP.manifest, *APP.blobs))
        total = found["total"]
        assert (total["requests"], total["hits"], total["hit_rate"]) == (12, 9, 0.75)
        assert (total["served_bytes"], total["upstream_bytes"]) == (4 * size, size)
        assert (total["saved_bytes"], total["byte_hit_rate"]) == (3 * size, 0.75)
        assert total["results"]["negative"] == 1
        assert found["cache"]["bytes"] == found["cache"]["kept_bytes"] == blocks
        hub, *others = found["upstreams"]
        assert (hub["name"], hub["up"], hub["last_answer"]) == ("docker.io", True, "404")
        assert {each["up"] for each in others} == {None}
        assert (found["running"]["processes"], found["trouble"]) == (1, "")
    alone = await stats(config)
    assert alone["running"] is None
    assert {**alone, "running": found["running"]} == found


@pytest.mark.slow
async def test_a_download_is_there_while_it_is_under_way(tmp_path, upstream):
    upstream.hold(1 << 20)
    config = config_of(tmp_path, upstream)
    async with (
        running(tmp_path, {"docker.io": upstream.url}) as mirror,
        aiohttp.ClientSession() as session,
        session.get(f"{mirror.url}/v2/library/app/blobs/{digest_of(SLOW)}") as answer,
        limit(),
    ):
        while not (fills := (await stats(config))["fills"]) or not fills[0]["bytes"]:
            await asyncio.sleep(0.05)
        (fill,) = fills
        assert (fill["upstream"], fill["repository"]) == ("docker.io", "library/app")
        assert (fill["digest"], fill["total_bytes"]) == (digest_of(SLOW), len(SLOW))
        assert 0 < fill["bytes"] < len(SLOW)
        assert fill["clients"] == 1
        upstream.release()
        assert await answer.read() == SLOW


async def test_requests_that_all_failed_are_requests_and_no_other_registry_is_an_upstream(
    tmp_path, upstream, capsys
):
    config = config_of(tmp_path, upstream)
    async with running(tmp_path, {"docker.io": upstream.url}) as mirror:
        await upstream.stop()
        for _ in range(3):
            assert (await mirror.get("/v2/library/app/manifests/1")).status == 502
            assert (await mirror.get("/v2/nowhere.example/app/manifests/1")).status == 403
        found = await stats(config)
        await upstream.start()
    print_statistics(found)
    printed = capsys.readouterr().out
    assert re.search(r"^requests +0 +0 *\nfailed +3 +3 *$", printed, re.MULTILINE)
    trouble, hub = (line for line in printed.splitlines() if "docker.io" in line)
    assert f"{upstream.url} does not answer: cannot connect to {upstream.url}" in trouble
    assert "; check the network, DNS, and the address" in trouble
    assert re.split(r"  +", hub)[1:4] == ["no answer", "3", "3"]
    assert "" not in {each["name"] for each in found["upstreams"]}


async def test_what_is_downloaded_ahead_is_not_less_than_nothing_saved(tmp_path, upstream, capsys):
    config = config_of(tmp_path, upstream)
    async with running(tmp_path, {"docker.io": upstream.url}) as mirror:
        url = f"/v2/library/app/blobs/{digest_of(SLOW)}"
        assert len((await mirror.get(url, Range="bytes=0-9")).body) == 10
        await eventually(mirror, "mirror_cache_objects", 1)
        found = await stats(config)
    assert found["total"]["upstream_bytes"] > found["total"]["served_bytes"]
    assert found["total"]["saved_bytes"] == 0
    print_statistics(found)
    assert not re.search("[-\N{MINUS SIGN}][0-9]", capsys.readouterr().out.partition("saved")[2])


async def test_a_cache_that_has_served_nobody_has_no_rates(tmp_path, upstream, capsys):
    tmp_path.joinpath("cache").mkdir()
    found = await stats(config_of(tmp_path / "cache", upstream))
    print_statistics(found)
    assert "not asked yet: docker.io, " in capsys.readouterr().out
    print_statistics({**found, "trouble": "database or disk is full"})
    assert "not asked yet" not in capsys.readouterr().out
    assert (found["since"], found["total"]["hit_rate"], found["fills"]) == (None, None, [])
