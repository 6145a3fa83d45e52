"""Listing and dropping images, through a running mirror and in the directory alike."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from mirror.admin.commands import listed, removed
from mirror.config import Config, load
from mirror.user_error import UserError
from tests.fakes import FakeRegistry, image, random_bytes
from tests.fakes.content import OCI_INDEX, OCI_MANIFEST, Image, digest_of, index
from tests.running import Mirror, eventually, running

pytestmark = [pytest.mark.slow]


OBJECTS = "mirror_cache_objects"
BASE = random_bytes(50_000, 1)
APP = image(BASE, random_bytes(30_000, 2), marker="app")
TOOL = image(BASE, random_bytes(20_000, 3), marker="tool")


def for_platform(architecture: str, *layers: bytes) -> Image:
    """An image whose configuration says what it runs on."""
    config = json.dumps({"os": "linux", "architecture": architecture}).encode()
    made = image(*layers)
    body = made.manifest.replace(made.digests[0].encode(), digest_of(config).encode())
    body = body.replace(b'"size": %d' % len(made.blobs[0]), b'"size": %d' % len(config), 1)
    return Image(body, made.media_type, (config, *layers))


ARM = for_platform("arm64", random_bytes(10_000, 4))
AMD = for_platform("amd64", random_bytes(11_000, 5))
MULTI = index(ARM, AMD)


@dataclass
class Site:
    """A mirror with images in it, or what is left of it once it has ended."""

    config: Config
    mirror: Mirror | None
    upstream: FakeRegistry


@pytest.fixture
async def upstream() -> AsyncIterator[FakeRegistry]:
    async with FakeRegistry() as registry:
        registry.add_image("library/app", APP, "1", "latest")
        registry.add_image("library/tool", TOOL, "2")
        for each in (ARM, AMD):
            registry.add_image("org/multi", each)
        registry.add_manifest("org/multi", MULTI, OCI_INDEX, "3")
        yield registry


@asynccontextmanager
async def site(directory: Path, upstream: FakeRegistry) -> AsyncIterator[Mirror]:
    async with running(directory, {"docker.io": upstream.url}) as mirror:
        yield mirror


async def pull(mirror: Mirror, repo: str, reference: str, content: Image) -> None:
    """As a client does: by tag, and then all that the manifest names."""
    answer = await mirror.get(f"/v2/{repo}/manifests/{reference}")
    assert answer.body == content.manifest
    for digest in content.digests:
        assert (await mirror.get(f"/v2/{repo}/blobs/{digest}")).status == 200


@pytest.fixture(params=["running", "directory"])
async def cached(request, tmp_path, upstream) -> AsyncIterator[Site]:
    """Three images, two of which share a layer; the mirror runs on, or has ended."""
    tree = {
        "cache": {"directory": str(tmp_path)},
        "upstreams": {"docker.io": {"url": upstream.url}},
    }
    config = load(None, tree)
    async with site(tmp_path, upstream) as mirror:
        await pull(mirror, "library/app", "1", APP)
        await pull(mirror, "library/tool", TOOL.digest, TOOL)
        await mirror.get("/v2/org/multi/manifests/3")
        await pull(mirror, "org/multi", ARM.digest, ARM)
        await eventually(mirror, OBJECTS, 11)  # adopted after the client has them
        if request.param == "running":
            yield Site(config, mirror, upstream)
            return
    yield Site(config, None, upstream)


def size(content: Image) -> int:
    return len(content.manifest) + sum(map(len, content.blobs))


async def names(config: Config, *patterns: str) -> list[str]:
    return [each["name"] for each in (await listed(config, patterns))["images"]]


async def test_images_are_listed_by_the_names_that_people_give_them(cached):
    assert await names(cached.config) == [
        "docker.io/library/app:1",
        f"docker.io/library/tool@{TOOL.digest}",
        "docker.io/org/multi:3",
    ]


async def test_patterns_choose_among_them(cached):
    assert await names(cached.config, "app") == ["docker.io/library/app:1"]
    assert await names(cached.config, "org/*", "app:1") == [
        "docker.io/library/app:1",
        "docker.io/org/multi:3",
    ]
    assert await names(cached.config, "ghcr.io/**") == []


async def test_each_says_how_much_of_it_is_there_and_when_it_was_used(cached):
    found = (await listed(cached.config, []))["images"]
    app, _, multi = found
    assert (app["bytes"], app["whole"], app["missing_bytes"]) == (size(APP), True, 0)
    assert (app["tag"], app["digest"]) == ("1", APP.digest)
    assert app["platforms"][0]["platform"] == "linux/amd64"
    assert app["media_type"] == OCI_MANIFEST
    assert multi["bytes"] == len(MULTI) + size(ARM)
    assert [each["platform"] for each in multi["platforms"]] == ["linux/arm64"]
    age = datetime.now(UTC) - datetime.fromisoformat(app["last_used"])
    assert abs(age.total_seconds()) < 60


async def test_a_layer_that_two_images_share_is_counted_once(cached):
    total = (await listed(cached.config, []))["total"]
    assert total["images"] == 3
    assert total["bytes"] == size(APP) + size(TOOL) - len(BASE) + size(ARM) + len(MULTI)


async def test_what_is_not_whole_says_what_it_lacks(cached):
    await removed(cached.config, [APP.digests[2]], dry_run=False)
    (app,) = (await listed(cached.config, ["app"]))["images"]
    assert (app["whole"], app["missing_bytes"]) == (False, 30_000)


async def test_dropping_an_image_leaves_what_others_use(cached):
    gone = await removed(cached.config, ["app:1"], dry_run=False)
    assert gone["bytes"] == size(APP) - len(BASE)
    assert await names(cached.config) == [
        f"docker.io/library/tool@{TOOL.digest}",
        "docker.io/org/multi:3",
    ]
    (tool,) = (await listed(cached.config, ["tool@*"]))["images"]
    assert tool["whole"]


async def test_a_dry_run_says_the_same_and_drops_nothing(cached):
    said = await removed(cached.config, ["app:1", "org/**"], dry_run=True)
    assert said["dry_run"]
    assert len(await names(cached.config)) == 3
    done = await removed(cached.config, ["app:1", "org/**"], dry_run=False)
    assert {**said, "dry_run": False} == done
    assert [each["name"] for each in done["images"]] == [
        "docker.io/library/app:1",
        "docker.io/org/multi:3",
    ]


async def test_everything_can_be_dropped(cached):
    await removed(cached.config, ["**", "**@*"], dry_run=False)
    assert (await listed(cached.config, []))["cache"]["objects"] == 0


async def test_a_digest_drops_what_it_names_under_all_its_names(cached):
    gone = await removed(cached.config, [APP.digest], dry_run=False)
    assert [each["name"] for each in gone["images"]] == [
        "docker.io/library/app:1",
        f"docker.io/library/app@{APP.digest}",
    ]
    assert "docker.io/library/app:1" not in await names(cached.config)


async def test_what_is_not_there_is_said_in_one_line_and_nothing_goes(cached):
    with pytest.raises(UserError) as unknown:
        await removed(cached.config, ["org/multi:3", "app:2"], dry_run=False)
    assert str(unknown.value) == (
        "docker.io/library/app:2 is not cached; there is docker.io/library/app:1"
    )
    with pytest.raises(UserError, match=r"^docker\.io/library/app:latest is not cached"):
        await removed(cached.config, ["app"], dry_run=False)
    with pytest.raises(UserError, match=r"^ghcr\.io/\*\* is not cached$"):
        await removed(cached.config, ["ghcr.io/**"], dry_run=False)
    with pytest.raises(UserError, match=r"^sha256:0+ is not cached$"):
        await removed(cached.config, [f"sha256:{'0' * 64}"], dry_run=False)
    assert len(await names(cached.config)) == 3


async def test_what_is_no_name_is_said_in_one_line(cached):
    with pytest.raises(UserError, match=r"^found 'a b', allowed: names and globs"):
        await listed(cached.config, ["a b"])


async def test_a_directory_that_is_not_there_is_said_in_one_line(tmp_path):
    config = load(None, {"cache": {"directory": str(tmp_path / "cach")}})
    with pytest.raises(UserError, match="No such file or directory"):
        await listed(config, [])


async def test_a_running_mirror_forgets_at_once_what_was_dropped(tmp_path, upstream):
    config = load(None, {"cache": {"directory": str(tmp_path)}})
    async with site(tmp_path, upstream) as mirror:
        for _ in range(3):  # fresh, known, and hot
            await pull(mirror, "library/app", "1", APP)
            await eventually(mirror, OBJECTS, 4)
        asked = len(upstream.seen)
        await removed(config, ["app:1"], dry_run=False)
        answer = await mirror.get("/v2/library/app/manifests/1")
        assert answer.headers["Cache-Status"] == "mirror; fwd=miss; stored"
        for digest in APP.digests:
            await mirror.get(f"/v2/library/app/blobs/{digest}")
        methods = [(seen.method, seen.kind) for seen in upstream.seen[asked:]]
        assert methods == [("HEAD", "manifest"), ("GET", "manifest"), *[("GET", "blob")] * 3]
