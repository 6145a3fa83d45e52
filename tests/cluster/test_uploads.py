"""The queue of uploads: what reaches the object store, and what survives the process."""

import asyncio
import os

import pytest

from mirror.cluster.shared import opened_objects
from mirror.cluster.tier import TierError
from mirror.config.cluster import ClusterConfig
from mirror.oci.digest import Digest
from tests.cluster.conftest import of_fake, unused
from tests.fakes.memory_store import MemoryStore
from tests.waiting import until

pytestmark = [pytest.mark.slow]

SMALL, LARGE = os.urandom(70_000), os.urandom(20_000_000)


@pytest.fixture
def memory():
    memory = MemoryStore(100_000_000)
    yield memory
    memory.close()


@pytest.fixture
def opened(fake, memory, tmp_path, events):
    parts = memory.blobs, memory.manifests, memory.tags, tmp_path / "uploads", unused, events
    return lambda: opened_objects(of_fake(fake), *parts)


async def read(stream) -> bytes:
    pieces = []
    while piece := await stream.read():
        pieces.append(piece)
    return b"".join(pieces)


async def stored(blobs, data: bytes) -> Digest:
    digest = Digest.of(data)
    partial = await blobs.stage(digest)
    await partial.append([data])
    await partial.adopt()
    await partial.release()
    return digest


def path(digest: Digest) -> str:
    return f"cache/blobs/sha256/{digest.hex[:2]}/{digest.hex}"


@pytest.mark.parametrize("data", [b"", SMALL, LARGE], ids=["empty", "small", "large"])
async def test_a_blob_is_uploaded_once_and_read_from_any_byte(
    opened, memory, fake, events, tmp_path, data
):
    digest = await stored(memory.blobs, data)
    async with opened() as shared:
        shared.blobs.upload(digest)
        shared.blobs.upload(digest)
        await until(lambda: events.uploads["stored"] and not events.waiting)
        assert fake.objects == {path(digest): data}
        assert list((tmp_path / "uploads").iterdir()) == []
        puts = fake.asked["PUT"]
        shared.blobs.upload(digest)
        await until(lambda: events.uploads["present"])
        assert fake.asked["PUT"] - puts == (data is not LARGE)  # a small one is refused there
        start = len(data) // 2
        async with shared.blobs.open_blob(digest, start) as stream:
            assert stream.total == len(data)
            assert await read(stream) == data[start:]


async def test_private_and_evicted_blobs_are_not_uploaded(opened, memory, fake, events, tmp_path):
    digest = await stored(memory.private_blobs.of("quay.io"), SMALL)
    async with opened() as shared:
        shared.blobs.upload(digest)
        await until(lambda: events.uploads["lost"])
    assert fake.objects == {}
    assert list((tmp_path / "uploads").iterdir()) == []


@pytest.mark.parametrize("data", [SMALL, LARGE], ids=["small", "large"])
async def test_a_damaged_file_is_not_uploaded(opened, memory, fake, events, data):
    digest = await stored(memory.blobs, data)
    blob = await memory.blobs.lookup(digest)
    os.pwrite(blob.descriptor.fileno(), b"\0\1\2\3", len(data) - 4)
    blob.close()
    async with opened() as shared:
        shared.blobs.upload(digest)
        await until(lambda: events.uploads["lost"])
    assert (fake.objects, fake.parts) == ({}, {})


async def test_what_was_not_uploaded_is_uploaded_by_the_next_process(
    opened, memory, fake, events, tmp_path
):
    digests = [await stored(memory.blobs, data) for data in (SMALL, LARGE)]
    fake.refuse = 503
    async with opened() as shared:
        for digest in digests:
            shared.blobs.upload(digest)
        await until(lambda: len(list((tmp_path / "uploads").iterdir())) == 2)
    assert fake.objects == {}
    (tmp_path / "uploads" / "nonsense").touch()
    fake.refuse = 0
    async with opened():
        await until(lambda: events.uploads["stored"] == 2)
    assert fake.objects == {
        path(digest): data for digest, data in zip(digests, (SMALL, LARGE), strict=True)
    }


async def test_a_store_that_refuses_uploads_gets_them_later(opened, memory, fake, events, caplog):
    digest = await stored(memory.blobs, SMALL)
    fake.refuse = 403
    async with opened() as shared:
        shared.blobs.upload(digest)
        await until(lambda: events.uploads["failed"])
        assert [each.title for each in shared.problems()] == ["s3://images/cache takes no uploads"]
        assert shared.blobs.up
        fake.refuse = 0
        await until(lambda: events.uploads["stored"])
        assert shared.problems() == []
    assert events.waiting == 0
    begins, ends = [record.message for record in caplog.records if "uploads" in record.name]
    assert begins.startswith("s3://images/cache takes no uploads: http://127.0.0.1:")
    assert ends.startswith("s3://images/cache takes uploads again, after ")


async def test_the_process_uploads_what_is_left_before_it_ends(opened, memory, fake, tmp_path):
    digests = [await stored(memory.blobs, bytes([number])) for number in range(5)]
    async with opened() as shared:
        for digest in digests:
            shared.blobs.upload(digest)
    assert set(fake.objects) == {path(digest) for digest in digests}
    assert list((tmp_path / "uploads").iterdir()) == []


@pytest.mark.long
@pytest.mark.slow
async def test_an_upload_that_the_process_does_not_wait_for_leaves_no_parts(
    opened, memory, fake, tmp_path
):
    digest = await stored(memory.blobs, os.urandom(64_000_000))  # parts at once, and more
    async with opened() as shared:
        shared.blobs.upload(digest)
        await until(lambda: fake.parts)
        fake.hang.clear()
        # After it has stopped to wait for the upload (3 s), before it stops to wait for its
        # end (8 s).
        asyncio.get_running_loop().call_later(4.0, fake.hang.set)
    assert (fake.parts, fake.objects) == ({}, {})
    assert [file.name for file in (tmp_path / "uploads").iterdir()]


async def test_an_upload_that_another_process_makes_is_left_to_it(
    opened, memory, fake, events, tmp_path
):
    digest = await stored(memory.blobs, LARGE)
    async with opened() as one, opened() as two:
        fake.hang.clear()
        one.blobs.upload(digest)
        await until(lambda: fake.asked["HEAD"])
        two.blobs.upload(digest)
        await until(lambda: events.uploads["present"])
        fake.hang.set()
        await until(lambda: events.uploads["stored"])
    assert fake.asked["HEAD"] == 1


async def test_a_blob_with_wrong_bytes_is_discarded(opened, fake, memory, caplog):
    digest = Digest.of(SMALL)
    fake.objects[path(digest)] = b"wrong"
    async with opened() as shared:
        await shared.blobs.discard(digest)
        assert fake.objects == {}
        fake.refuse = 500
        await shared.blobs.discard(digest)  # as well as possible


async def test_a_directory_that_all_mirrors_mount_is_an_object_store(memory, tmp_path, events):
    digest = await stored(memory.blobs, LARGE)
    config = ClusterConfig(objects=f"file://{tmp_path}/shared")
    parts = memory.blobs, memory.manifests, memory.tags, tmp_path / "uploads", unused, events
    async with opened_objects(config, *parts) as shared:
        with pytest.raises(TierError):
            async with shared.blobs.open_blob(digest, 0):
                pass
        shared.blobs.upload(digest)
        await until(lambda: events.uploads["stored"])
        async with shared.blobs.open_blob(digest, len(LARGE) - 5) as stream:
            assert await stream.read() == LARGE[-5:]
