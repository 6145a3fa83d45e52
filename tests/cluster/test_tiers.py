"""Replicas with an object store: what their clients and upstream see of it."""

import asyncio
from typing import Any

import aiohttp
import pytest

from tests.cluster.replicas import replicas
from tests.fakes import random_bytes
from tests.fakes.bucket import BUCKET, FakeBucket
from tests.fakes.content import digest_of, image
from tests.running import eventually
from tests.waiting import limit

pytestmark = [pytest.mark.slow]

MIB = 1 << 20


def path(digest: str) -> str:
    return f"/v2/library/app/blobs/{digest}"


def key(digest: str) -> str:
    algorithm, _, number = digest.partition(":")
    return f"cache/blobs/{algorithm}/{number[:2]}/{number}"


def options(fake: FakeBucket, patience: str = "20s") -> dict[str, Any]:
    return {
        "objects": f"s3://{BUCKET}/cache",
        "endpoint": fake.url,
        "first_byte_timeout": patience,
    }


async def test_a_new_replica_gets_what_the_others_have_pulled_with_upstream_gone(
    tmp_path, upstream, redis, fake
):
    data = random_bytes(12 * MIB)
    content = image(data)
    upstream.add_image("library/app", content, "latest")
    tag, digest = "/v2/library/app/manifests/latest", digest_of(data)
    async with replicas(tmp_path, upstream, state=redis.url, **options(fake)) as cluster:
        for mirror in cluster.mirrors:
            assert (await mirror.get(tag)).body == content.manifest
            assert (await mirror.get(path(digest))).body == data
        await eventually(cluster.mirrors[0], 'mirror_uploads_total{result="stored"}', 2)
    assert fake.objects[key(digest)] == data
    assert upstream.count("blob", "GET") == 1
    await upstream.stop()
    redis.stop()
    (tmp_path / "new").mkdir()
    async with replicas(tmp_path / "new", upstream, 1, state=redis.url, **options(fake)) as cluster:
        answer = await cluster.mirrors[0].get(tag)
        assert answer.body == content.manifest
        assert answer.headers["Cache-Status"].startswith("mirror; fwd=stale")
        answer = await cluster.mirrors[0].get(path(digest))
        assert answer.body == data
        assert answer.headers["Cache-Status"] == "mirror; fwd=miss; stored; detail=object-store"
    await upstream.start()


@pytest.fixture
async def alone(tmp_path, upstream, fake):
    """A replica without others."""
    async with replicas(tmp_path, upstream, 1, **options(fake)) as cluster:
        yield cluster.mirrors[0]


@pytest.mark.parametrize("size", [60_000, 3 * MIB])
async def test_wrong_bytes_in_the_object_store_reach_no_client_whole(
    alone, upstream, fake, caplog, size
):
    data = random_bytes(size)
    digest = upstream.add_blob(data)
    fake.objects[key(digest)] = data[:1000] + bytes([data[1000] ^ 1]) + data[1001:]
    if size > MIB:
        with pytest.raises(aiohttp.ClientPayloadError):
            await alone.get(path(digest))
        assert upstream.count("blob") == 0
    assert (await alone.get(path(digest))).body == data
    assert upstream.count("blob", "GET") == 1
    assert "check the registry" not in caplog.text
    async with limit():
        while fake.objects.get(key(digest)) != data:  # removed, and then uploaded again
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("wrong", ["short", "long"])
async def test_an_object_of_another_size_reaches_no_client_whole(alone, upstream, fake, wrong):
    data = random_bytes(3 * MIB)
    digest = upstream.add_blob(data)
    fake.objects[key(digest)] = data[: 2 * MIB] if wrong == "short" else data + b"more"
    with pytest.raises(aiohttp.ClientPayloadError):
        await alone.get(path(digest))
    assert (await alone.get(path(digest))).body == data
    assert upstream.count("blob", "GET") == 1


async def test_upstream_sends_only_what_the_object_store_did_not(alone, upstream, fake):
    data = random_bytes(4 * MIB)
    digest = upstream.add_blob(data)
    fake.objects[key(digest)] = data
    fake.cut = MIB
    assert (await alone.get(path(digest))).body == data
    assert upstream.count("blob") == 1
    assert len(data) - MIB <= upstream.sent[digest] < len(data)


@pytest.mark.long
@pytest.mark.parametrize("fault", ["hang", "500", "full"])
async def test_an_object_store_that_fails_costs_no_second_download(
    tmp_path, upstream, redis, fake, fault
):
    data = random_bytes(4 * MIB)
    digest = upstream.add_blob(data)
    if fault == "hang":
        fake.hang.clear()
    elif fault == "full":
        fake.refuse = 507
    else:
        fake.status = 500
    store = options(fake, "500ms")
    async with replicas(tmp_path, upstream, state=redis.url, **store) as cluster:
        asked = [mirror.get(path(digest)) for mirror in cluster.mirrors for _ in range(4)]
        async with limit():
            answers = await asyncio.gather(*asked)
        assert all(answer.body == data for answer in answers)
        assert upstream.sent[digest] == len(data)
        fake.hang.set()
