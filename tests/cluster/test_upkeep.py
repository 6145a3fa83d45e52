"""`mirror rm` and `mirror verify --cluster`: what they do to the object store."""

import json
import re
import subprocess
import sys

import pytest

from mirror.cluster import check_installed
from mirror.cluster.upkeep import names, verify
from mirror.cluster.uploads import path_of
from mirror.config.cluster import ClusterConfig
from mirror.oci.digest import Digest
from mirror.oci.image_glob import ImageGlob, Naming
from mirror.oci.manifest import Descriptor
from mirror.oci.media_types import OCI_MANIFEST
from mirror.store.interface import Link, Manifest
from mirror.store.local.content import Blobs, Manifests
from mirror.store.local.eviction import Limits
from mirror.store.local.layout import BLOBS, MANIFESTS, Layout, ObjectKey
from mirror.store.local.objects import Objects
from mirror.store.metadata.kv import KeyValueStore
from mirror.store.metadata.records import Tags
from mirror.threads import Threads, run
from mirror.user_error import UserError
from tests.cluster.conftest import of_fake
from tests.store.local.test_eviction import Evictions
from tests.waiting import LIMIT_SECONDS

pytestmark = pytest.mark.slow

CONFIG, LAYER = b"{}", b"a layer" * 100
BODY = json.dumps(
    {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": str(Digest.of(CONFIG)),
            "size": len(CONFIG),
        },
        "layers": [
            {
                "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
                "digest": str(Digest.of(LAYER)),
                "size": len(LAYER),
            }
        ],
    }
).encode()
MANIFEST = Manifest(Digest.of(BODY), OCI_MANIFEST, BODY)
KEYS = [
    ObjectKey(BLOBS, Digest.of(CONFIG)),
    ObjectKey(BLOBS, Digest.of(LAYER)),
    ObjectKey(MANIFESTS, MANIFEST.digest),
]


@pytest.fixture
def shared(tmp_path):
    """The directory of an object store with the objects of an image, and another object."""
    shared = tmp_path / "shared"
    for key, data in zip(KEYS, (CONFIG, LAYER, BODY), strict=True):
        place(shared, path_of(key), data)
        place(shared, f"used/{path_of(key)}", b"")
    place(shared, "links/docker.io/library/app:1", b"link")
    place(shared, path_of(ObjectKey(BLOBS, Digest.of(b"other"))), b"other")
    return shared


def place(shared, path: str, data: bytes) -> None:
    (shared / path).parent.mkdir(parents=True, exist_ok=True)
    (shared / path).write_bytes(data)


def files(shared) -> list[str]:
    return sorted(str(path.relative_to(shared)) for path in shared.rglob("*") if path.is_file())


def command(tmp_path, *arguments: str, objects: str = ""):
    file = tmp_path / "mirror.toml"
    file.write_text(f'[cluster]\nobjects = "{objects or f"file://{tmp_path}/shared"}"\n')
    options = ["--config", str(file), "--cache-dir", str(tmp_path / "cache")]
    return mirror(*arguments, *options)


def mirror(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mirror", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=LIMIT_SECONDS
    )


@pytest.fixture
def cached(tmp_path) -> None:
    """The image in a local cache."""

    async def fill() -> None:
        layout = Layout(tmp_path / "cache")
        layout.ensure()
        with Threads(2, "files") as threads:
            objects = Objects(layout, Limits(10_000_000, 0), Evictions(), threads)
            await objects.open()
            blobs = Blobs(layout, objects, threads)
            for data in (CONFIG, LAYER):
                partial = await blobs.stage(Digest.of(data))
                await partial.append([data])
                await partial.adopt()
                await partial.release()
            await Manifests(layout, objects, threads).put(MANIFEST)
            records = KeyValueStore(layout.tags)
            await records.heal()
            link = Link(Descriptor(OCI_MANIFEST, MANIFEST.digest, len(BODY)), 1.0)
            await Tags(records).put("docker.io library/app 1", link)
            await records.close()
            await objects.close()

    run(fill())


@pytest.mark.long
def test_an_image_is_dropped_from_the_object_store_too(tmp_path, shared, cached):
    before = files(shared)
    assert command(tmp_path, "rm", "app:1", "--dry-run").returncode == 0
    assert files(shared) == before
    dropped = command(tmp_path, "rm", "app:1")
    assert dropped.returncode == 0, dropped.stderr
    assert "dropped docker.io/library/app:1" in dropped.stdout
    assert files(shared) == [path_of(ObjectKey(BLOBS, Digest.of(b"other")))]


@pytest.mark.long
def test_an_image_stays_if_the_object_store_fails(tmp_path, cached, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    dropped = command(tmp_path, "rm", "app:1", objects="s3://images")
    assert dropped.returncode == 1
    assert "not dropped from the object store, nor here: s3://images: " in dropped.stderr
    assert "docker.io/library/app:1" in command(tmp_path, "ls").stdout


@pytest.mark.long
def test_the_names_that_only_the_object_store_has_are_listed_with_the_others(
    tmp_path, shared, cached
):
    for path in (
        "docker.io/library/app:2",
        "docker.io/library/app:2@" + "0" * 32,  # the same for clients with another Accept
        "ghcr.io/team/tool:1",
        "localhost:5000/tool:1",
        f"ghcr.io/team/tool:{Digest.of(b'x')}",
        "ghcr.io/team/a b;c:1",  # these are no names
        "ghcr.io/team/tool:",
        "GHCR/team/tool:1",
    ):
        place(shared, f"links/{path}", b"link")
    found = command(tmp_path, "ls", "--cluster", "--json")
    assert found.returncode == 0, found.stderr
    told = json.loads(found.stdout)
    assert [each["name"] for each in told["images"]] == ["docker.io/library/app:1"]
    assert [each["name"] for each in told["object_store"]["images"]] == [
        "docker.io/library/app:2",
        "ghcr.io/team/tool:1",
        f"ghcr.io/team/tool@{Digest.of(b'x')}",
        "localhost:5000/tool:1",
    ]
    assert told["object_store"]["whole"]
    _, shown, *_, more = command(tmp_path, "ls", "--cluster", "app:2").stdout.splitlines()
    row = (
        r"docker\.io/library/app:2 +- +- +in the object store +written (just now|\d+ minutes? ago)"
    )
    assert re.fullmatch(row, shown), shown
    assert more == "1 more in the object store"


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["tool:1"], []),
        (["ghcr.io/**"], ["ghcr.io/team/tool:1", "ghcr.io/tool:1"]),
        (["ghcr.io/team/*:1", "app"], ["docker.io/library/app:1", "ghcr.io/team/tool:1"]),
        (["*/team/**"], ["ghcr.io/team/tool:1"]),
        ([], ["docker.io/library/app:1", "ghcr.io/team/tool:1", "ghcr.io/tool:1"]),
    ],
)
async def test_a_pattern_asks_for_a_part_of_the_names_only(tmp_path, shared, patterns, expected):
    for path in ("ghcr.io/team/tool:1", "ghcr.io/tool:1"):
        place(shared, f"links/{path}", b"link")
    naming = Naming("docker.io", {}, frozenset({"docker.io"}))
    globs = [ImageGlob.parse(pattern, naming) for pattern in patterns]
    found = await names(ClusterConfig(objects=f"file://{shared}"), globs)
    assert sorted(map(str, found.written)) == expected


async def test_a_name_with_control_characters_does_not_reach_the_terminal(shared):
    place(shared, "links/ghcr.io/\x1b[31m:1", b"link")
    with pytest.raises(UserError) as caught:
        await names(ClusterConfig(objects=f"file://{shared}"), ())
    assert str(caught.value).isprintable()


@pytest.mark.long
async def test_a_hundred_thousand_names_are_the_most(fake):
    fake.objects = dict.fromkeys(
        (f"cache/links/docker.io/library/a:{n}" for n in range(100_002)), b""
    )
    found = await names(of_fake(fake), ())
    assert (len(found.written), found.whole) == (100_000, False)


@pytest.mark.long
def test_damaged_objects_are_found_and_removed(tmp_path, shared):
    good = command(tmp_path, "verify", "--cluster")
    assert (good.returncode, "4 objects" in good.stdout) == (0, True)
    damaged = shared / path_of(KEYS[1])
    damaged.write_bytes(LAYER[:-1] + b"?")
    found = command(tmp_path, "verify", "--cluster", "--json")
    assert found.returncode == 1
    told = json.loads(found.stdout)
    assert told["damaged"] == [{"kind": "blobs", "digest": str(KEYS[1].digest)}]
    assert not damaged.exists()
    assert command(tmp_path, "verify", "--cluster").returncode == 0


async def test_objects_that_no_mirror_wrote_are_not_verified(shared):
    odd = ("blobs/README", "blobs/sha256/x", "blobs/a/b/c/d/e", f"blobs/{path_of(KEYS[0])}")
    for path in odd:
        place(shared, path, b"?")
    ignored = list[int]().append
    found = await verify(ClusterConfig(objects=f"file://{shared}"), ignored, ignored)
    assert (found.objects, found.damaged) == (4, [])
    assert set(odd) <= set(files(shared))


@pytest.mark.long
def test_a_store_that_fails_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    found = command(tmp_path, "verify", "--cluster", objects="s3://images")
    assert found.returncode == 1
    assert "s3://images: " in found.stderr


@pytest.mark.long
def test_without_an_object_store_there_is_nothing_to_verify(tmp_path):
    (tmp_path / "empty.toml").touch()
    found = mirror("verify", "--cluster", "--config", str(tmp_path / "empty.toml"))
    assert "[cluster] objects is empty: there is no object store to verify" in found.stderr


def test_missing_libraries_are_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(UserError, match=r"^\[cluster\] needs the library obstore: pip install"):
        check_installed()
