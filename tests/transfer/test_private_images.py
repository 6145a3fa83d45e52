"""Private images, got with a client's credentials, are listed, kept and dropped like others."""

from mirror.admin.commands import listed, removed
from mirror.config import load
from tests.fakes import image, random_bytes
from tests.fakes.office import EVERYBODY
from tests.pull.test_private import ANN, GOOD, OPEN, TEAM, opened, pull, visited
from tests.running import eventually


async def test_private_images_are_listed_as_such_and_dropped(tmp_path, upstream):
    keep = [{"images": [f"{OPEN}:*"]}]
    tree = {"cache": {"directory": str(tmp_path)}, "keep": keep}
    config = load(None, {**tree, "upstreams": {"docker.io": {"url": upstream.url}}})
    async with (
        opened(upstream, bearer=False) as office,
        visited(tmp_path, office, keep=keep) as mirror,
    ):
        assert await pull(mirror, office, TEAM, ANN) == GOOD
        assert await pull(mirror, office, OPEN, None) == GOOD
        await eventually(mirror, "mirror_cache_objects", 6)
        found = (await listed(config, []))["images"]
        assert [(each["name"], each["private"], each["whole"]) for each in found] == [
            (f"docker.io/{OPEN}:1", False, True),
            (f"docker.io/{TEAM}:1", True, True),
        ]
        gone = await removed(config, [f"{TEAM}:1"])
        assert {each["kind"] for each in gone["objects"]} == {"private-manifests", "private-blobs"}
        assert [each["name"] for each in (await listed(config, []))["images"]] == [
            f"docker.io/{OPEN}:1"
        ]
        before = office.given.count(("GET", "blobs"))
        assert await pull(mirror, office, TEAM, ANN) == GOOD
        assert office.given.count(("GET", "blobs")) == before + 2, "it comes from upstream again"


async def test_private_images_are_kept_too(tmp_path, upstream):
    keep = [{"images": [f"{TEAM}:1"]}]
    async with (
        opened(upstream, bearer=False) as office,
        visited(tmp_path, office, keep=keep, cache={"max_size": "4MiB"}) as mirror,
    ):
        assert await pull(mirror, office, TEAM, ANN) == GOOD
        await eventually(mirror, "mirror_cache_objects", 3)
        for seed in (10, 11, 12):
            office.add(f"library/more{seed}", image(random_bytes(1_200_000, seed)), EVERYBODY)
            assert await pull(mirror, office, f"library/more{seed}", None) == GOOD
            await eventually(mirror, "mirror_fills_in_progress", 0)
        assert (await mirror.metrics())["mirror_evictions_total"] > 0
        before = office.given.count(("GET", "blobs"))
        assert await pull(mirror, office, TEAM, ANN) == GOOD
        assert office.given.count(("GET", "blobs")) == before
