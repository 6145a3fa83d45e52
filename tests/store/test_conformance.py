"""The promises of ``mirror.store.interface``, for the store on disk and for the one in memory."""

import os
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
from prometheus_client import CollectorRegistry

from mirror.cluster.shared import opened_objects
from mirror.config.cluster import ClusterConfig
from mirror.metrics.cluster import ClusterMetrics
from mirror.oci.digest import Digest
from mirror.oci.manifest import Descriptor
from mirror.oci.media_types import OCI_MANIFEST
from mirror.store.interface import (
    MOST_PAGE_BYTES,
    BlobStore,
    Link,
    ListingStore,
    Manifest,
    ManifestStore,
    NoRoomError,
    Page,
    PartialBusyError,
    PartialStatus,
    RepositoryLinks,
    TagStore,
)
from mirror.store.local.content import Blobs, Manifests
from mirror.store.local.eviction import Limits
from mirror.store.local.objects import Objects
from mirror.store.metadata.kv import KeyValueStore
from mirror.store.metadata.records import Links, Listings, Tags
from tests.cluster.conftest import unused
from tests.fakes.memory_store import MemoryStore
from tests.store.local.test_eviction import Evictions

ROOM = 20_000_000
DATA = b"some content"
DIGEST = Digest.of(DATA)
BODY = b'{"schemaVersion": 2, "config": {}, "layers": []}'
MANIFEST = Manifest(Digest.of(BODY), OCI_MANIFEST, BODY)
ONE, OTHER = "ghcr.io", "quay.io"


@dataclass
class Store:
    """The parts of a store, by the interface."""

    blobs: BlobStore
    private_blobs: BlobStore
    manifests: ManifestStore
    private_manifests: ManifestStore
    tags: TagStore
    listings: ListingStore
    links: RepositoryLinks


@pytest.fixture(params=["disk", "memory", "cluster"])
async def store(request, layout, tmp_path) -> AsyncIterator[Store]:
    if request.param == "cluster":
        memory = MemoryStore(ROOM)
        config = ClusterConfig(objects=f"file://{tmp_path}/shared")
        metrics = ClusterMetrics(CollectorRegistry())
        parts = memory.blobs, memory.manifests, memory.tags, layout.uploads, unused, metrics
        async with opened_objects(config, *parts) as shared:
            yield Store(
                *(memory.blobs, memory.private_blobs, shared.manifests, memory.private_manifests),
                *(shared.tags, memory.listings, memory.links),
            )
        memory.close()
        return
    if request.param == "memory":
        memory = MemoryStore(ROOM)
        yield Store(
            *(memory.blobs, memory.private_blobs, memory.manifests, memory.private_manifests),
            *(memory.tags, memory.listings, memory.links),
        )
        memory.close()
        return
    with ThreadPoolExecutor(2) as threads:
        disk = layout, Objects(layout, Limits(ROOM, 0), Evictions(), threads), threads
        records = KeyValueStore(layout.tags)
        await disk[1].open()
        await records.heal()
        yield Store(
            *(Blobs(*disk), Blobs(*disk, private=True)),
            *(Manifests(*disk), Manifests(*disk, private=True)),
            Tags(records),
            Listings(records),
            Links(records),
        )
        await records.close()
        await disk[1].close()


async def put(blobs: BlobStore, data: bytes = DATA) -> None:
    partial = await blobs.stage(Digest.of(data))
    await partial.append([data])
    await partial.adopt()
    await partial.release()


async def read(blobs: BlobStore, digest: Digest = DIGEST) -> bytes | None:
    stored = await blobs.lookup(digest)
    if stored is None:
        return None
    data = stored.read()
    stored.close()
    return data


async def test_a_blob_is_found_once_it_is_adopted(store):
    assert await store.blobs.lookup(DIGEST) is None
    partial = await store.blobs.stage(DIGEST)
    assert await partial.reserve(len(DATA), len(DATA))
    await partial.append([DATA[:4], DATA[4:6]])
    await partial.append([DATA[6:]])
    assert (partial.length, partial.verified()) == (len(DATA), True)
    assert await store.blobs.lookup(DIGEST) is None
    await partial.adopt()
    await partial.release()
    assert await read(store.blobs) == DATA


async def test_a_blob_can_be_stored_twice(store):
    await put(store.blobs)
    await put(store.blobs)
    assert await read(store.blobs) == DATA


async def test_a_stored_blob_stays_readable_while_it_is_replaced(store):
    await put(store.blobs)
    stored = await store.blobs.lookup(DIGEST)
    await put(store.blobs)
    assert stored.read() == DATA
    stored.close()


async def test_a_fill_has_one_leader_until_it_is_released(store):
    partial = await store.blobs.stage(DIGEST)
    with pytest.raises(PartialBusyError):
        await store.blobs.stage(DIGEST)
    await partial.release()
    await (await store.blobs.stage(DIGEST)).release(discard=True)


async def test_the_next_leader_continues_where_the_last_one_stopped(store):
    first = await store.blobs.stage(DIGEST)
    await first.append([DATA[:4]])
    await first.release()
    second = await store.blobs.stage(DIGEST)
    assert (second.length, second.verified()) == (4, False)
    await second.append([DATA[4:]])
    assert second.verified()
    await second.release()


async def test_discarded_bytes_are_gone(store):
    first = await store.blobs.stage(DIGEST)
    await first.append([b"wrong"])
    await first.release(discard=True)
    second = await store.blobs.stage(DIGEST)
    assert second.length == 0
    await second.release()


async def test_a_restarted_fill_has_neither_bytes_nor_hash(store):
    partial = await store.blobs.stage(DIGEST)
    await partial.append([b"wrong"])
    await partial.restart()
    assert partial.length == 0
    await partial.append([DATA])
    assert partial.verified()
    await partial.release(discard=True)


async def test_a_reader_keeps_the_bytes_of_a_fill_that_has_ended(store):
    partial = await store.blobs.stage(DIGEST)
    await partial.append([DATA[:4]])
    reader = partial.content.duplicate()
    await partial.append([DATA[4:]])
    await partial.adopt()
    await partial.release()
    assert reader.part(0, len(DATA)).read() == DATA
    reader.close()


async def test_a_reader_does_not_move_where_the_fill_writes(store):
    partial = await store.blobs.stage(DIGEST)
    await partial.append([DATA[:4]])
    reader = partial.content.duplicate()
    os.lseek(reader.descriptor.fileno(), 0, os.SEEK_SET)  # as sendfile does
    await partial.append([DATA[4:]])
    assert partial.content.read() == DATA
    reader.close()
    await partial.release(discard=True)


async def test_a_follower_sees_the_fill_of_another_leader(store):
    assert await store.blobs.tail(DIGEST) is None
    partial = await store.blobs.stage(DIGEST)
    tail = await store.blobs.tail(DIGEST)
    assert tail.look() == PartialStatus(0, None, led=True)
    await partial.reserve(len(DATA), len(DATA))
    await partial.append([DATA[:4]])
    assert tail.look() == PartialStatus(4, len(DATA), led=True)
    assert tail.content.read() == DATA[:4]
    await partial.append([DATA[4:]])
    assert DIGEST.matches(await tail.hashed(DIGEST, len(DATA)))
    with pytest.raises(OSError, match="shorter"):
        await tail.hashed(DIGEST, len(DATA) + 1)
    await partial.adopt()
    await partial.release()
    stored = await store.blobs.lookup(DIGEST)
    assert not tail.look().led
    assert tail.content.is_same_file(stored)
    stored.close()
    tail.close()


async def test_a_blob_without_room_is_refused(store):
    partial = await store.blobs.stage(DIGEST)
    assert not await partial.reserve(2 * ROOM, 2 * ROOM)
    await partial.release(discard=True)


async def test_a_private_blob_is_found_for_its_upstream_only(store):
    await put(store.private_blobs.of(ONE))
    found = [store.private_blobs.of(ONE), store.private_blobs.of(OTHER), store.blobs]
    assert [await read(blobs) for blobs in found] == [DATA, None, None]


async def test_a_public_blob_is_found_by_all_and_replaces_a_private_one(store):
    await put(store.private_blobs.of(ONE))
    await put(store.blobs)
    found = [store.private_blobs.of(ONE), store.private_blobs.of(OTHER), store.blobs]
    assert [await read(blobs) for blobs in found] == [DATA, DATA, DATA]


async def test_upstreams_do_not_share_the_fill_of_a_private_blob(store):
    stores = [store.private_blobs.of(ONE), store.private_blobs.of(OTHER), store.blobs]
    partials = [await blobs.stage(DIGEST) for blobs in stores]
    await partials[0].append([DATA])
    assert [partial.length for partial in partials] == [len(DATA), 0, 0]
    for partial in partials:
        await partial.release(discard=True)


async def test_a_public_store_is_the_same_for_all_upstreams(store):
    assert store.blobs.of(ONE) is store.blobs
    assert store.manifests.of(ONE) is store.manifests
    assert (store.blobs.private, store.private_blobs.of(ONE).private) == (False, True)


async def test_a_manifest_is_found_as_it_was_stored(store):
    assert await store.manifests.lookup(MANIFEST.digest) is None
    await store.manifests.put(MANIFEST)
    store.manifests.touch(MANIFEST.digest)
    store.blobs.touch(DIGEST)
    assert await store.manifests.lookup(MANIFEST.digest) == MANIFEST


async def test_a_later_media_type_replaces_the_first(store):
    later = Manifest(MANIFEST.digest, "application/other", BODY)
    await store.manifests.put(MANIFEST)
    await store.manifests.put(later)
    assert await store.manifests.lookup(MANIFEST.digest) == later


async def test_a_private_manifest_is_found_for_its_upstream_only(store):
    await store.private_manifests.of(ONE).put(MANIFEST)
    private = store.private_manifests
    found = [private.of(ONE), private.of(OTHER), store.manifests]
    assert [await each.lookup(MANIFEST.digest) for each in found] == [MANIFEST, None, None]


async def test_a_manifest_without_room_is_refused(store):
    body = BODY + b" " * 2 * ROOM
    with pytest.raises(NoRoomError):
        await store.manifests.put(Manifest(Digest.of(body), OCI_MANIFEST, body))


async def test_a_link_is_found_until_it_is_forgotten(store):
    link = Link(Descriptor(OCI_MANIFEST, DIGEST, 7), 123.5)
    assert await store.tags.lookup("hub app 1") is None
    await store.tags.put("hub app 1", Link(link.descriptor, 1.0, imported=True))
    await store.tags.put("hub app 1", link)
    assert await store.tags.lookup("hub app 1") == link
    await store.tags.forget("hub app 1")
    await store.tags.forget("hub app 1")
    assert await store.tags.lookup("hub app 1") is None


async def test_the_last_page_of_a_listing_is_found(store):
    page = Page(b"{}", {"next_query": "n=1"}, 5.0)
    assert await store.listings.lookup("tags hub app") is None
    await store.listings.put("tags hub app", page)
    assert await store.listings.lookup("tags hub app") == page
    await store.listings.put("tags hub app", Page(None, {}, 6.0))
    assert await store.listings.lookup("tags hub app") == Page(None, {}, 6.0)


async def test_a_page_that_is_too_large_is_skipped(store):
    await store.listings.put("tags hub app", Page(b" " * (MOST_PAGE_BYTES + 1), {}, 5.0))
    assert await store.listings.lookup("tags hub app") is None


async def test_a_repository_has_the_links_that_were_recorded(store):
    assert not await store.links.has("hub app blob 1")
    await store.links.put("hub app blob 1")
    assert await store.links.has("hub app blob 1")
    assert not await store.links.has("hub app blob 2")
