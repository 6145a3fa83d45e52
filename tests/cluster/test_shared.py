"""Manifests and links of the object store: what a new mirror knows of the others."""

import asyncio
import json
import time

import pytest

from mirror.cluster.secret import Secret
from mirror.cluster.shared import opened_objects
from mirror.cluster.tier import TierError
from mirror.config.cluster import ClusterConfig
from mirror.config.fields import Size
from mirror.oci.digest import Digest
from mirror.oci.manifest import Descriptor
from mirror.oci.media_types import OCI_MANIFEST
from mirror.store.interface import Link, Manifest
from mirror.user_error import UserError
from tests.cluster.conftest import of_fake, unused
from tests.fakes.memory_store import MemoryStore
from tests.waiting import limit, until

pytestmark = [pytest.mark.slow]

BODY = (
    b'{"schemaVersion": 2, "config": {"mediaType": "application/vnd.oci.image.config.v1+json",'
    b' "digest": "sha256:%s", "size": 2}, "layers": []}' % (b"a" * 64)
)
MANIFEST = Manifest(Digest.of(BODY), OCI_MANIFEST, BODY)
PATH = f"cache/manifests/sha256/{MANIFEST.digest.hex[:2]}/{MANIFEST.digest.hex}"
NAME = "docker.io library/app 1"
LINK_PATH = "cache/links/docker.io/library/app:1"
LINK = Link(Descriptor(OCI_MANIFEST, MANIFEST.digest, len(BODY)), 1_000.0)


@pytest.fixture
def mirrors(fake, tmp_path, events):
    """Open the part of a mirror with a store of its own; ``secret`` is the shared one."""
    count = iter(range(10))

    def opened(secret: str = ""):
        memory = MemoryStore(1_000_000)
        parts = (
            memory.blobs,
            memory.manifests,
            memory.tags,
            tmp_path / f"{next(count)}",
            unused,
            events,
        )
        return opened_objects(of_fake(fake), *parts, Secret(secret.encode()) if secret else None)

    return opened


async def test_a_new_mirror_has_the_manifests_and_links_of_the_others(mirrors, fake):
    async with mirrors() as one, mirrors() as two:
        await one.manifests.put(MANIFEST)
        await one.tags.put(NAME, LINK)
        await until(lambda: len(fake.objects) == 2)
        assert fake.objects[PATH] == BODY
        assert await two.manifests.of("docker.io").lookup(MANIFEST.digest) == MANIFEST
        assert await two.tags.lookup(NAME) == LINK
        fake.status = 500  # they are stored locally now
        assert await two.manifests.lookup(MANIFEST.digest) == MANIFEST
        assert await two.tags.lookup(NAME) == LINK


async def test_many_clients_ask_the_object_store_once(mirrors, fake):
    fake.objects[PATH] = BODY
    async with mirrors() as one:
        fake.hang.clear()
        asked = [asyncio.create_task(one.manifests.lookup(MANIFEST.digest)) for _ in range(20)]
        await until(lambda: fake.asked["GET"])
        fake.hang.set()
        async with limit():
            assert set(await asyncio.gather(*asked)) == {MANIFEST}
    assert fake.asked["GET"] == 1


@pytest.mark.parametrize("body", [BODY + b" ", b"{}"], ids=["other bytes", "no manifest"])
async def test_a_wrong_manifest_is_not_believed_and_removed(mirrors, fake, body):
    digest = MANIFEST.digest if body != b"{}" else Digest.of(body)
    path = f"cache/manifests/sha256/{digest.hex[:2]}/{digest.hex}"
    fake.objects[path] = body
    async with mirrors() as one:
        assert await one.manifests.lookup(digest) is None
    assert fake.objects == {}


async def test_a_store_that_fails_is_a_miss(mirrors, fake):
    fake.status = 500
    async with mirrors() as one:
        assert await one.tags.lookup(NAME) is None
        await until(one.problems)
        assert await one.manifests.lookup(MANIFEST.digest) is None
        asked = fake.asked["PUT"]
        await one.tags.put(NAME, LINK)  # it is written when the store answers again
        assert fake.asked["PUT"] == asked
        fake.status = 0
        await until(lambda: LINK_PATH in fake.objects)


async def test_links_that_the_store_refuses_are_written_later(mirrors, fake):
    fake.refuse = 507
    async with mirrors() as one:
        await one.tags.put(NAME, LINK)
        await until(lambda: fake.asked["PUT"])
        moved = Link(Descriptor(OCI_MANIFEST, Digest.of(b"x"), 1), LINK.seen)
        await one.tags.put(NAME, moved)
        fake.refuse = 0
        await until(lambda: LINK_PATH in fake.objects)
    assert str(moved.descriptor.digest).encode() in fake.objects[LINK_PATH]


async def test_the_end_of_the_mirror_does_not_wait_for_a_store_that_is_gone(mirrors, fake):
    async with mirrors() as one:
        fake.refuse = 500
        await one.tags.put(NAME, LINK)
        await until(lambda: fake.asked["PUT"])
    assert fake.objects == {}


async def test_a_link_is_written_when_it_changes_and_once_an_hour(mirrors, fake):
    async with mirrors() as one:
        await one.tags.put(NAME, LINK)
        await until(lambda: LINK_PATH in fake.objects)
        for seconds in (60, 3_000):
            await one.tags.put(NAME, Link(LINK.descriptor, LINK.seen + seconds))
        assert fake.asked["PUT"] == 1
        moved = Descriptor(OCI_MANIFEST, Digest.of(b"x"), 1)
        await one.tags.put(NAME, Link(moved, LINK.seen + 3_001))
        await until(lambda: fake.asked["PUT"] == 2)
        await one.tags.put(NAME, Link(moved, LINK.seen + 7_000))
        await until(lambda: fake.asked["PUT"] == 3)
        await one.tags.forget(NAME)
        await until(lambda: LINK_PATH not in fake.objects)


async def test_links_by_accept_are_other_links(mirrors, fake):
    async with mirrors() as one, mirrors() as two:
        await one.tags.put(f"{NAME} application/a, application/b", LINK)
        await until(lambda: fake.objects)
        assert await two.tags.lookup(NAME) is None
        assert await two.tags.lookup(f"{NAME} application/a, application/b") == LINK


async def test_only_signed_links_are_believed_with_a_secret(mirrors, fake):
    async with mirrors("a" * 32) as one, mirrors("a" * 32) as two, mirrors("b" * 32) as other:
        await one.tags.put(NAME, LINK)
        await until(lambda: LINK_PATH in fake.objects)
        assert await other.tags.lookup(NAME) is None
        record, _, signature = fake.objects[LINK_PATH].partition(b"\n")
        for wrong in (record, record + b"\n", record.replace(b"1000", b"2000") + b"\n" + signature):
            fake.objects[LINK_PATH] = wrong
            assert await two.tags.lookup(NAME) is None
        # A signed link of another name.
        fake.objects["cache/links/docker.io/library/other:1"] = record + b"\n" + signature
        assert await two.tags.lookup("docker.io library/other 1") is None
        fake.objects[LINK_PATH] = record + b"\n" + signature
        assert await two.tags.lookup(NAME) == LINK


@pytest.mark.parametrize(
    "record",
    [b"", b"[]", b"{}\n", b"\xff", b'{"name": 1}\n', b"x" * 70_000, b"[" * 60_000],
)
async def test_nonsense_is_no_link(mirrors, fake, record):
    fake.objects[LINK_PATH] = record
    async with mirrors() as one:
        assert await one.tags.lookup(NAME) is None


@pytest.mark.parametrize(
    "wrong",
    [
        *('"size": -1', '"size": "x"', '"size": null', '"size": 1e999', f'"size": {2**63}'),
        *('"seen": NaN', '"seen": -1e999', '"mediaType": "\\ud800"', '"mediaType": "a\\u001b"'),
    ],
)
async def test_a_link_with_a_wrong_field_is_no_link(mirrors, fake, wrong):
    fields = {"name": NAME, "digest": str(MANIFEST.digest), "mediaType": OCI_MANIFEST, "size": 1}
    record = json.dumps({**fields, "seen": 1})[:-1] + f", {wrong}}}\n"
    fake.objects[LINK_PATH] = record.encode()
    async with mirrors() as one:
        assert await one.tags.lookup(NAME) is None


async def test_a_link_of_the_future_is_one_of_now(mirrors, fake):
    """Else it would be served with upstream gone for as long as its writer likes."""
    async with mirrors("a" * 32) as one, mirrors("a" * 32) as two:
        await one.tags.put(NAME, Link(LINK.descriptor, time.time() + 1e9))
        await until(lambda: LINK_PATH in fake.objects)
        found = await two.tags.lookup(NAME)
    assert found is not None
    assert found.seen <= time.time()


async def test_the_manifests_that_were_not_uploaded_are_uploaded_later(mirrors, fake, events):
    fake.refuse = 500
    async with mirrors() as one:
        await one.manifests.put(MANIFEST)
        await until(lambda: events.uploads["failed"])
        fake.refuse = 0
        await until(lambda: PATH in fake.objects)


async def test_a_reload_changes_the_credentials_the_patience_and_the_size(fake, tmp_path, events):
    file = tmp_path / "credentials"

    def config(key: str, patience: str, most: str) -> ClusterConfig:
        file.write_text(f"[default]\naws_access_key_id = {key}\naws_secret_access_key = b\n")
        more = {"credentials_file": str(file), "max_size": Size.parse(most)}
        return of_fake(fake, patience).model_copy(update=more)

    memory = MemoryStore(1_000_000)
    parts = memory.blobs, memory.manifests, memory.tags, tmp_path / "uploads", unused, events
    async with opened_objects(config("old", "20s", "0"), *parts) as shared:
        await shared.manifests.put(MANIFEST)
        await until(lambda: PATH in fake.objects)
        await shared.sweeper.sweep()
        assert (PATH in fake.objects, fake.keys) == (True, {"old"})
        shared.prepared(config("new", "1s", "1"))()
        await shared.sweeper.sweep()
        assert (PATH in fake.objects, fake.keys) == (False, {"old", "new"})
        fake.hang.clear()
        with pytest.raises(TierError, match="no answer in time"):
            async with shared.blobs.open_blob(MANIFEST.digest, 0):
                pass
        broken = config("x", "1s", "0")
        file.write_text("[default]\n")
        with pytest.raises(UserError, match="has no aws_access_key_id"):
            shared.prepared(broken)
        assert shared.sweeper.max_bytes == 1
