"""Images whose indexes name the same manifests over and over: looked through once, or refused."""

import gzip
import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from mirror.inventory.removal import planned
from mirror.metrics.metrics import Metrics
from mirror.oci.digest import Digest
from mirror.oci.image_glob import FullName
from mirror.oci.manifest import Descriptor
from mirror.server.store import opened_store
from mirror.store.interface import Link, Manifest, link_name
from mirror.store.local.content import Manifests
from mirror.transfer.layout_store import Completeness
from mirror.user_error import UserError
from tests.fakes import image
from tests.fakes.content import OCI_INDEX, OCI_MANIFEST, digest_of
from tests.transfer.layouts import MARKER, blob_path, packed
from tests.transfer.test_layout import imported, settings

pytestmark = [pytest.mark.long]

APP = image(b"layer", marker="app")
NAME = "docker.io/library/app:1"


def part_of(media_type: str, body: bytes) -> dict[str, str | int]:
    return {"mediaType": media_type, "digest": digest_of(body), "size": len(body)}


def index_of(parts: list[dict[str, str | int]], marker: str = "") -> bytes:
    fields = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": parts}
    return json.dumps(fields | {"annotations": {"marker": marker}}).encode()


def nested(count: int, references: int) -> dict[str, bytes]:
    """A layout with an index of ``count`` indexes that name one image so many times each."""
    parts = [part_of(OCI_MANIFEST, APP.manifest)] * references
    indexes = [index_of(parts, str(number)) for number in range(count)]
    top = index_of([part_of(OCI_INDEX, each) for each in indexes])
    root = part_of(OCI_INDEX, top) | {"annotations": {"io.containerd.image.name": NAME}}
    bodies = [*APP.blobs, APP.manifest, *indexes, top]
    return {blob_path(body): body for body in bodies} | {
        "index.json": json.dumps({"schemaVersion": 2, "manifests": [root]}).encode(),
        "oci-layout": MARKER,
    }


class Counted(Manifests):
    """Manifests that count how often each is read."""

    reads: Counter[Digest]

    async def lookup(self, digest):
        self.reads[digest] += 1
        return await super().lookup(digest)


async def test_an_image_that_is_named_sixty_thousand_times_is_looked_through_once(tmp_path):
    layout = nested(3, 20_000)
    assert await imported(tmp_path, packed(layout), {}) == {NAME: ""}
    config = settings(tmp_path / "cache", {})
    with ThreadPoolExecutor(1) as threads:
        async with opened_store(config, Metrics("0")) as store:
            manifests = Counted(store.layout, store.objects, threads)
            manifests.reads = Counter()
            root = json.loads(layout["index.json"])["manifests"][0]
            digest = Digest.parse(root["digest"])
            completeness = Completeness(store.blobs, manifests)
            for _ in range(2):
                await completeness.completed(Descriptor(OCI_INDEX, digest, root["size"]))
    assert len(manifests.reads) == 5
    assert set(manifests.reads.values()) == {1}


async def test_an_image_whose_indexes_name_too_much_is_refused_in_one_line(tmp_path):
    archive = gzip.compress(packed(nested(11, 20_000)), 1)
    with pytest.raises(UserError) as refused:
        await imported(tmp_path, archive, {})
    assert str(refused.value).endswith("the manifests of an image have more than 200000 references")
    async with opened_store(settings(tmp_path / "cache", {}), Metrics("0")) as store:
        assert [each async for page in store.catalogue.names() for each in page] == []


async def put(store, body: bytes, media_type: str) -> Descriptor:
    digest = Digest.of(body)
    await store.manifests.put(Manifest(digest, media_type, body))
    return Descriptor(media_type, digest, len(body))


async def name(store, tag: str, meant: Descriptor) -> None:
    await store.tags.put(link_name(FullName("docker.io", "library/app", tag)), Link(meant, 1.0))


async def test_an_index_of_one_large_manifest_named_for_thousands_of_platforms_is_listed(tmp_path):
    layers = [
        {"mediaType": "a", "digest": f"sha256:{number:064x}", "size": 1} for number in range(30_000)
    ]
    large = json.dumps({"schemaVersion": 2, "config": layers[0], "layers": layers}).encode()
    digest = digest_of(large)
    entries = [
        {
            "mediaType": OCI_MANIFEST,
            "digest": digest,
            "size": 1,
            "platform": {"os": "linux", "architecture": str(number)},
        }
        for number in range(20_000)
    ]
    index = json.dumps({"schemaVersion": 2, "manifests": entries}).encode()
    async with opened_store(settings(tmp_path / "cache", {}), Metrics("0")) as store:
        await put(store, large, OCI_MANIFEST)
        meant = await put(store, index, OCI_INDEX)
        for tag in range(100):
            await name(store, str(tag), meant)
        images = [each async for each in store.catalogue.images()]
    assert len(images) == 100
    assert {len(each.platforms) for each in images} == {20_000}
    assert images[0].platforms[0].missing == 30_000


async def test_images_nested_deeper_than_any_stack_are_removed(tmp_path):
    """What stays at the top keeps all that is below."""
    async with opened_store(settings(tmp_path / "cache", {}), Metrics("0")) as store:
        below = part_of(OCI_MANIFEST, APP.manifest)
        chain = [await put(store, APP.manifest, OCI_MANIFEST)]
        for number in range(600):
            body = index_of([below], str(number))
            chain.append(await put(store, body, OCI_INDEX))
            below = part_of(OCI_INDEX, body)
        for number, meant in enumerate(chain):
            await name(store, str(number), meant)
        last = str(len(chain) - 1)
        plan = await planned(store.catalogue, lambda each: each.name.reference != last, [])
    assert len(plan.images) == 600
    assert plan.objects == {}
