"""Small records by name, and the tags in them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from mirror.oci.digest import Digest
from mirror.oci.manifest import Descriptor
from mirror.oci.media_types import OCI_MANIFEST
from mirror.store.interface import IndexUnavailableError, Link
from mirror.store.metadata.kv import KeyValueStore
from mirror.store.metadata.records import Tags


@asynccontextmanager
async def opened(layout) -> AsyncIterator[KeyValueStore]:
    records = KeyValueStore(layout.tags)
    await records.heal()
    yield records
    await records.close()


async def test_records_are_bytes_by_name_and_survive(layout):
    async with opened(layout) as records:
        await records.put("a", b"1")
        await records.put("a", b"2")
        await records.put("b", b"3")
    async with opened(layout) as records:
        assert await records.lookup("a") == b"2"
        assert [page async for page in records.pages()] == [[("a", b"2"), ("b", b"3")]]
        await records.remove("a")
        assert await records.lookup("a") is None


async def test_a_database_that_is_not_open_has_no_records_and_takes_none(layout):
    records = KeyValueStore(layout.tags)
    assert await records.lookup("a") is None
    with pytest.raises(IndexUnavailableError, match="not open"):
        await records.put("a", b"1")
    await records.close()


async def test_tags_survive_and_can_be_forgotten(layout):
    link = Link(Descriptor(OCI_MANIFEST, Digest.of(b"some content"), 7), 123.5)
    async with opened(layout) as records:
        await Tags(records).put("hub app:1", link)
    async with opened(layout) as records:
        again = Tags(records)
        assert await again.lookup("hub app:1") == link
        await again.forget("hub app:1")
        assert await again.lookup("hub app:1") is None


async def test_records_are_found_by_the_start_of_their_names_in_pages(layout):
    async with opened(layout) as records:
        for number in range(450):
            await records.put(f"{'even' if number % 2 == 0 else 'odd'} {number}", b"")
        pages = [page async for page in records.pages("even ")]
    assert [len(page) for page in pages] == [200, 25]
    names = [name for page in pages for name, _ in page]
    assert names == [f"even {number}" for number in range(0, 450, 2)]
