"""Objects, manifests and tags as the rest of the program uses them, with the disk against us."""

import asyncio
import json
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from mirror.oci.digest import Digest
from mirror.oci.media_types import OCI_MANIFEST
from mirror.store.interface import Manifest, NoRoomError
from mirror.store.local.content import Blobs, Manifests
from mirror.store.local.eviction import Limits
from mirror.store.local.index import ObjectIndex
from mirror.store.local.layout import BLOBS, MANIFESTS, Layout, ObjectKey
from mirror.store.local.objects import Objects
from tests.store.local.test_eviction import Evictions
from tests.waiting import until

MOST = 10_000_000
DATA = b"some content"
DIGEST = Digest.of(DATA)
BODY = json.dumps({"schemaVersion": 2, "config": {}, "layers": []}).encode()
MANIFEST = Manifest(Digest.of(BODY), OCI_MANIFEST, BODY)


@pytest.fixture
async def objects(layout, threads):
    objects = Objects(layout, Limits(MOST, 0), Evictions(), threads)
    await objects.open()
    yield objects
    await objects.close()


@pytest.fixture
def threads():
    with ThreadPoolExecutor(2) as threads:
        yield threads


@pytest.fixture
async def blobs(layout, objects, threads):
    blobs = Blobs(layout, objects, threads)
    partial = await blobs.stage(DIGEST)
    await partial.append([DATA])
    await partial.adopt()
    await partial.release()
    return blobs


def file_of(layout, kind: str):
    (file,) = [file for file in (layout.root / kind).rglob("*") if file.is_file()]
    return file


async def test_who_looks_something_up_does_not_wait_until_thousands_are_evicted(
    layout, objects, blobs, threads
):
    manifests = Manifests(layout, objects, threads)
    bodies = [BODY + b" " * at for at in range(1, 70)]
    for body in bodies:
        await manifests.put(Manifest(Digest.of(body), OCI_MANIFEST, body))
    most = MOST - objects._recoverable.evictor._reserved_overhead()
    evicting = asyncio.create_task(objects.make_room(most // 4096 * 4096 - 10 * 4096))
    found = await objects.lookup(ObjectKey(MANIFESTS, Digest.of(bodies[-1])))
    assert found is not None
    found.close()
    assert not evicting.done()
    assert await evicting
    assert (await objects.usage()).objects <= 20


async def test_lower_limits_hold_at_once(layout, objects, blobs, threads):
    manifests = Manifests(layout, objects, threads)
    for at in range(1, 90):
        body = BODY + b" " * at
        await manifests.put(Manifest(Digest.of(body), OCI_MANIFEST, body))
    await objects.limit(Limits(MOST, 0))
    before = await objects.usage()
    most = (before.overhead_bytes + before.used_bytes // 2) * 400 // 351
    await objects.limit(Limits(most, 0))
    usage = await objects.usage()
    assert 0 < usage.used_bytes < before.used_bytes
    assert usage.used_bytes + usage.overhead_bytes <= most


async def test_a_file_removed_behind_our_back_is_a_miss_and_no_longer_counted(
    layout, objects, blobs
):
    file_of(layout, "blobs").unlink()
    assert await blobs.lookup(DIGEST) is None
    assert (await objects.usage()).objects == 0


async def test_a_file_truncated_behind_our_back_is_a_miss_and_no_longer_counted(
    layout, objects, blobs
):
    file_of(layout, "blobs").write_bytes(DATA[:-1])
    assert await blobs.lookup(DIGEST) is None
    assert (await objects.usage()).objects == 0


async def test_forgetting_says_whether_there_was_anything(objects, blobs):
    assert await objects.forget(ObjectKey(BLOBS, DIGEST))
    assert not await objects.forget(ObjectKey(BLOBS, DIGEST))


async def test_a_manifest_is_hashed_again_whenever_it_leaves_the_disk(layout, objects, threads):
    manifests = Manifests(layout, objects, threads)
    await manifests.put(MANIFEST)
    assert await manifests.lookup(MANIFEST.digest) == MANIFEST
    file_of(layout, "manifests").write_bytes(BODY.replace(b"2", b"3"))
    assert await manifests.lookup(MANIFEST.digest) is None
    assert (await objects.usage()).objects == 0
    await manifests.put(MANIFEST)
    assert await objects.forget(ObjectKey(MANIFESTS, MANIFEST.digest))


async def test_a_manifest_written_halfway_by_a_crash_does_not_stay_in_the_way(
    layout, objects, threads
):
    layout.partial_of(ObjectKey(MANIFESTS, MANIFEST.digest)).write_bytes(b"{half")
    manifests = Manifests(layout, objects, threads)
    await manifests.put(MANIFEST)
    assert await manifests.lookup(MANIFEST.digest) == MANIFEST


async def test_a_manifest_without_room_is_refused(layout, threads):
    objects = Objects(layout, Limits(10, 0), Evictions(), threads)
    await objects.open()
    with pytest.raises(NoRoomError):
        await Manifests(layout, objects, threads).put(MANIFEST)
    await objects.close()


async def test_what_was_used_is_kept_in_mind_over_a_restart(layout, blobs, threads):
    """Touches are written in batches, at the latest when the store closes."""
    clock = iter([5e9, 6e9])
    objects = Objects(layout, Limits(MOST, 0), Evictions(), threads, clock=lambda: next(clock))
    await objects.open()
    stored = await Blobs(layout, objects, threads).lookup(DIGEST)
    assert stored is not None
    stored.close()
    await objects.close()
    ((_, used),) = ObjectIndex(layout).oldest(1)
    assert used == 5e9


def open_files(layout: Layout) -> list[str]:
    """The files of the cache that this process has open, but for its databases."""
    files = []
    for number in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # the descriptor of the listing itself
            files.append(os.readlink(f"/proc/self/fd/{number}"))
    root = str(layout.root)
    return sorted(file for file in files if file.startswith(root) and ".db" not in file)


async def idle(threads: ThreadPoolExecutor) -> None:
    """Wait until both threads have done what was submitted before."""
    both = threading.Barrier(2)
    loop = asyncio.get_running_loop()
    await asyncio.gather(*(loop.run_in_executor(threads, both.wait) for _ in range(2)))


async def test_who_leaves_while_something_is_opened_leaves_nothing_open(
    layout, objects, blobs, threads
):
    manifests = Manifests(layout, objects, threads)
    await manifests.put(MANIFEST)
    other = Digest.of(b"never stored")
    before = open_files(layout)
    for ask in (
        lambda: blobs.lookup(DIGEST),
        lambda: manifests.lookup(MANIFEST.digest),
        lambda: blobs.stage(other),
    ):
        for turns in range(12):
            asking = asyncio.ensure_future(ask())
            for _ in range(turns):
                await asyncio.sleep(0)
            if asking.cancel():
                await asyncio.wait([asking])
            else:
                getattr(asking.result(), "close", str)()
            await idle(threads)  # it may still open, and then closes
            await until(lambda: open_files(layout) == before)  # closed by a thread
    partial = await blobs.stage(other)  # its lock is free
    partial.close()


async def test_the_public_objects_used_after_a_time_are_found(objects, layout, threads, blobs):
    private = Blobs(layout, objects, threads, private=True).of("quay.io")
    partial = await private.stage(Digest.of(b"private"))
    await partial.append([b"private"])
    await partial.adopt()
    await partial.release()
    blobs.touch(DIGEST)
    await objects.flush_touches()
    assert await objects.used_after(0.0) == [ObjectKey(BLOBS, DIGEST)]
    assert await objects.used_after(time.time() + 60) == []
