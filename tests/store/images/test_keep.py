"""Images that a rule keeps, and objects that nobody pulls, in a cache that is too small."""

import asyncio
import logging

import pytest

from mirror.admin.commands import listed, removed
from mirror.config import load
from mirror.user_error import UserError
from tests.cli.test_images import for_platform
from tests.fakes import FakeRegistry, image, random_bytes
from tests.fakes.content import OCI_INDEX, Image, index
from tests.running import Mirror, eventually, running
from tests.waiting import limit, until

pytestmark = [pytest.mark.slow]

KEPT = for_platform("amd64", random_bytes(600_000, 1))
OTHERS = [image(random_bytes(600_000, seed), marker=str(seed)) for seed in range(2, 7)]
MULTI = index(KEPT)
RULES = [{"images": ["docker.io/library/base:*"]}]
SMALL = {"max_size": "3500KiB"}


@pytest.fixture
async def upstream():
    async with FakeRegistry() as registry:
        registry.add_image("library/base", KEPT)
        registry.add_manifest("library/base", MULTI, OCI_INDEX, "1")
        for number, each in enumerate(OTHERS):
            registry.add_image(f"org/app{number}", each, "1")
        yield registry


async def pull(mirror: Mirror, repo: str, content: Image, reference: str = "1") -> None:
    assert (await mirror.get(f"/v2/{repo}/manifests/{reference}")).status == 200
    assert (await mirror.get(f"/v2/{repo}/manifests/{content.digest}")).body == content.manifest
    for digest, data in zip(content.digests, content.blobs, strict=True):
        assert (await mirror.get(f"/v2/{repo}/blobs/{digest}")).body == data


async def stored(mirror: Mirror, count: int) -> None:
    await eventually(mirror, "mirror_cache_objects", count)


async def cached(config) -> dict[str, bool]:
    return {each["name"]: each["whole"] for each in (await listed(config, []))["images"]}


def config_of(directory, upstream, **sections):
    tree = {"cache": {"directory": str(directory), **SMALL}, **sections}
    return load(None, {**tree, "upstreams": {"docker.io": {"url": upstream.url}}})


async def test_a_kept_image_outlives_whatever_is_pulled_after_it(tmp_path, upstream):
    config = config_of(tmp_path, upstream, keep=RULES)
    async with running(tmp_path, {"docker.io": upstream.url}, cache=SMALL, keep=RULES) as mirror:
        await pull(mirror, "library/base", KEPT)
        await stored(mirror, 4)
        for number, each in enumerate(OTHERS):
            await pull(mirror, f"org/app{number}", each)
        (base,) = (await listed(config, ["base"]))["images"]
        assert (base["whole"], base["kept"]) == (True, True)
        figures = await mirror.metrics()
        assert figures["mirror_evictions_total"] >= 3
        await upstream.stop()
        await pull(mirror, "library/base", KEPT, KEPT.digest)


async def test_without_the_rule_it_goes_like_any_other(tmp_path, upstream):
    config = config_of(tmp_path, upstream)
    async with running(tmp_path, {"docker.io": upstream.url}, cache=SMALL) as mirror:
        await pull(mirror, "library/base", KEPT)
        await stored(mirror, 4)
        for number, each in enumerate(OTHERS):
            await pull(mirror, f"org/app{number}", each)
        assert not (await cached(config)).get("docker.io/library/base:1")


async def test_what_does_not_fit_beside_kept_images_passes_through_and_the_log_says_so_once(
    tmp_path, upstream, caplog
):
    rules = [{"images": ["**"]}]
    async with running(tmp_path, {"docker.io": upstream.url}, cache=SMALL, keep=rules) as mirror:
        for number, each in enumerate(OTHERS):
            await pull(mirror, f"org/app{number}", each)
        before = upstream.count("blob", "GET")
        await pull(mirror, "org/app0", OTHERS[0])
        assert upstream.count("blob", "GET") == before, "the first ones stay"
        assert (await mirror.metrics())["mirror_evictions_total"] == 0
    said = [record.getMessage() for record in caplog.records if "kept images" in str(record.msg)]
    assert len(said) == 1
    assert "not cached" in said[0]


async def test_kept_images_are_dropped_only_by_force(tmp_path, upstream):
    config = config_of(tmp_path, upstream, keep=RULES)
    async with running(tmp_path, {"docker.io": upstream.url}, keep=RULES) as mirror:
        await pull(mirror, "library/base", KEPT)
        await stored(mirror, 4)
        for target in ("base:1", "**", KEPT.digests[1]):
            with pytest.raises(UserError, match=r"kept .*\[\[keep\]\].*--force"):
                await removed(config, [target])
        assert (await cached(config))["docker.io/library/base:1"]
        assert (await removed(config, ["base:1"], dry_run=True, force=True))["bytes"]
        await removed(config, ["base:1"], force=True)
        assert await cached(config) == {}


async def test_rules_that_come_with_a_reload_or_a_restart_hold_for_what_is_there(
    tmp_path, upstream
):
    async with running(tmp_path, {"docker.io": upstream.url}) as mirror:
        await pull(mirror, "library/base", KEPT)
        await pull(mirror, "org/app0", OTHERS[0])
        await stored(mirror, 7)
    async with running(tmp_path, {"docker.io": upstream.url}, cache=SMALL, keep=RULES) as mirror:
        await until_kept(tmp_path, 4)
        for number, each in enumerate(OTHERS[1:], 1):
            await pull(mirror, f"org/app{number}", each)
        config = config_of(tmp_path, upstream, keep=RULES)
        assert (await cached(config))["docker.io/library/base:1"]
        assert not (await cached(config)).get("docker.io/org/app0:1")
    async with running(tmp_path, {"docker.io": upstream.url}, cache=SMALL):
        await until_kept(tmp_path, 0)


async def test_what_is_kept_is_found_out_anew_when_the_index_was_lost(tmp_path, upstream):
    async with running(tmp_path, {"docker.io": upstream.url}, keep=RULES) as mirror:
        await pull(mirror, "library/base", KEPT)
        await stored(mirror, 4)
    for file in tmp_path.glob("cache.db*"):
        file.unlink()
    async with running(tmp_path, {"docker.io": upstream.url}, keep=RULES):
        await until_kept(tmp_path, 4)


async def until_kept(directory, count: int) -> None:
    """Wait for the review after a start."""
    from contextlib import closing  # noqa: PLC0415
    from sqlite3 import connect  # noqa: PLC0415

    async with limit():
        while True:
            with closing(connect(directory / "cache.db")) as database:
                statement = "SELECT count(*) FROM Cache WHERE access_count = 1"
                if database.execute(statement).fetchone() == (count,):
                    return
            await asyncio.sleep(0.01)


async def test_a_start_with_little_room_beside_what_is_kept_is_warned_of(
    tmp_path, upstream, caplog
):
    caplog.set_level(logging.WARNING)
    async with running(tmp_path, {"docker.io": upstream.url}) as mirror:
        await pull(mirror, "library/base", KEPT)
        await stored(mirror, 4)
    size = {"max_size": "700KB"}
    async with running(tmp_path, {"docker.io": upstream.url}, cache=size, keep=RULES):
        await until(lambda: "[[keep]] keeps" in caplog.text)
