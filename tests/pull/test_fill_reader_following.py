"""A fill that another process leads, with a store in memory."""

import asyncio
from itertools import count

import pytest

from mirror.oci.digest import Digest
from mirror.pull.fill_reader import FillReader, Following, State
from mirror.pull.policy import HOLD_BACK_BYTES
from mirror.store.interface import BlobStore, PartialBlob
from tests.fakes.memory_store import MemoryStore
from tests.waiting import limit, until

DATA = bytes(range(256)) * 4096
DIGEST = Digest.of(DATA)
assert len(DATA) > 2 * HOLD_BACK_BYTES


@pytest.fixture
def blobs():
    store = MemoryStore()
    yield store.blobs
    store.close()


@pytest.fixture
async def leader(blobs: BlobStore) -> PartialBlob:
    partial = await blobs.stage(DIGEST)
    assert await partial.reserve(len(DATA), len(DATA))
    return partial


async def visible(reader: FillReader) -> bytes:
    async with limit():
        return reader.piece(0, await reader.advance(0, None)).read()


async def test_readers_see_what_the_leader_writes_but_not_the_unverified_end(blobs, leader):
    reader = FillReader(DIGEST)
    following = Following(DIGEST, reader, blobs)
    task = asyncio.create_task(following.follow())
    await leader.append([DATA])
    assert await visible(reader) == DATA[:-HOLD_BACK_BYTES]
    await leader.adopt()
    await leader.release()
    async with limit():
        assert await task
    stored = await blobs.lookup(DIGEST)
    assert following.leads_to(stored)
    stored.close()
    following.close()
    reader.close()


async def test_a_leader_without_progress_is_left_where_it_stopped(blobs, leader):
    reader = FillReader(DIGEST)
    following = Following(DIGEST, reader, blobs, clock=count(0, 1000).__next__)
    await leader.append([DATA[: len(DATA) // 2]])
    async with limit():
        assert not await following.follow()
    await until(lambda: reader.state is State.GROWING)
    await following.decline()
    assert reader.state is State.DECLINED
    assert DATA.startswith(await visible(reader))
    following.close()
    reader.close()


async def test_a_fill_that_has_just_ended_is_not_followed(blobs):
    following = Following(DIGEST, FillReader(DIGEST), blobs)
    assert await following.follow()
    following.close()
