"""What is private is another object than what everybody may have, and another for each upstream."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from mirror.oci.digest import Digest
from mirror.oci.media_types import OCI_MANIFEST
from mirror.store.interface import Manifest
from mirror.store.local.content import Blobs, Manifests
from mirror.store.local.eviction import Limits
from mirror.store.local.layout import BLOBS, MANIFESTS, PRIVATE_BLOBS, PRIVATE_MANIFESTS, ObjectKey
from mirror.store.local.objects import Objects
from tests.store.local.test_eviction import Evictions

DATA = b"some content"
DIGEST = Digest.of(DATA)
BODY = b'{"schemaVersion": 2, "config": {}, "layers": []}'
MANIFEST = Manifest(Digest.of(BODY), OCI_MANIFEST, BODY)
ONE, OTHER = "ghcr.io", "quay.io"


@pytest.fixture
def threads():
    with ThreadPoolExecutor(2) as threads:
        yield threads


@pytest.fixture
async def objects(layout, threads):
    objects = Objects(layout, Limits(10_000_000, 0), Evictions(), threads)
    await objects.open()
    yield objects
    await objects.close()


async def store(blobs: Blobs) -> None:
    partial = await blobs.stage(DIGEST)
    await partial.append([DATA])
    await partial.adopt()
    await partial.release()


async def is_there(blobs: Blobs) -> bool:
    stored = await blobs.lookup(DIGEST)
    if stored is not None:
        stored.close()
    return stored is not None


async def test_a_private_blob_is_had_on_the_word_of_its_upstream_alone(layout, objects, threads):
    private = Blobs(layout, objects, threads, private=True)
    await store(private.of(ONE))
    assert await is_there(private.of(ONE))
    assert not await is_there(private.of(OTHER))
    assert not await is_there(private)
    assert not await is_there(Blobs(layout, objects, threads))


async def test_a_private_manifest_too(layout, objects, threads):
    private = Manifests(layout, objects, threads, private=True)
    await private.of(ONE).put(MANIFEST)
    assert await private.of(ONE).lookup(MANIFEST.digest) == MANIFEST
    assert await private.of(OTHER).lookup(MANIFEST.digest) is None
    assert await Manifests(layout, objects, threads).lookup(MANIFEST.digest) is None


async def test_what_is_everybodys_is_found_by_whoever_may_have_what_is_private(
    layout, objects, threads
):
    await store(Blobs(layout, objects, threads))
    assert await is_there(Blobs(layout, objects, threads, private=True).of(ONE))


async def test_two_upstreams_do_not_fill_one_file(layout, objects, threads):
    private = Blobs(layout, objects, threads, private=True)
    first = await private.of(ONE).stage(DIGEST)
    second = await private.of(OTHER).stage(DIGEST)
    public = await Blobs(layout, objects, threads).stage(DIGEST)
    assert len({first.path, second.path, public.path}) == 3
    for partial in (first, second, public):
        await partial.release(discard=True)


async def test_it_stays_private_and_whose_it_is_when_the_index_is_lost(layout, threads):
    objects = Objects(layout, Limits(10_000_000, 0), Evictions(), threads)
    await objects.open()
    await store(Blobs(layout, objects, threads, private=True).of(ONE))
    await objects.close()
    for file in layout.root.glob("cache.db*"):
        file.unlink()
    again = Objects(layout, Limits(10_000_000, 0), Evictions(), threads)
    await again.open()
    await again.rebuilt()
    private = Blobs(layout, again, threads, private=True)
    found = [await is_there(each) for each in (private.of(ONE), private.of(OTHER))]
    assert found == [True, False]
    assert not await is_there(Blobs(layout, again, threads))
    await again.close()


async def test_what_becomes_everybodys_is_not_kept_twice(layout, objects, threads):
    await store(Blobs(layout, objects, threads, private=True).of(ONE))
    await store(Blobs(layout, objects, threads))
    assert [row.key.kind async for row in objects.rows()] == [BLOBS]
    assert len([*layout.root.glob("*blobs/*/*/*")]) == 1
    assert await is_there(Blobs(layout, objects, threads, private=True).of(OTHER))


@pytest.mark.parametrize("kind", [BLOBS, MANIFESTS, PRIVATE_BLOBS, PRIVATE_MANIFESTS])
def test_a_key_is_read_back_from_its_name_and_from_its_files(kind: str):
    key = ObjectKey(kind, DIGEST)
    assert ObjectKey.parse(str(key)) == key
    assert ObjectKey.of_name(key.new_name("0123456789ab")) == key
