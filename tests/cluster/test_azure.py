"""Azure Blob Storage as the object store, as its emulator answers."""

from collections.abc import Iterator

import aiohttp
import pytest

from mirror.cluster.objects import opened_bucket
from mirror.cluster.tier import TierMissError
from mirror.config.cluster import ClusterConfig
from mirror.config.fields import Duration
from tests.cluster.replicas import replicas
from tests.fakes import random_bytes
from tests.fakes.content import digest_of, image
from tests.peers.azurite import CONTAINER, Azurite
from tests.running import eventually

pytestmark = [pytest.mark.slow]

MIB = 1 << 20
OBJECTS = f"az://{CONTAINER}/cache"


@pytest.fixture
def azurite(tmp_path, monkeypatch) -> Iterator[Azurite]:
    server = Azurite(tmp_path / "azurite")
    server.start()
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    yield server
    server.stop()


async def read(stream) -> bytes:
    pieces = []
    while piece := await stream.read():
        pieces.append(piece)
    return b"".join(pieces)


async def test_each_operation(azurite, events):
    bucket = opened_bucket(
        ClusterConfig(objects=OBJECTS, first_byte_timeout=Duration("20s", 20.0)), events
    )
    assert await bucket.write("a", b"one", replace=False)
    assert not await bucket.write("a", b"two", replace=False)
    assert await bucket.write("a", b"three")
    assert await bucket.write("empty", b"")
    assert (await bucket.read("a", 10), await bucket.read("empty", 10)) == (b"three", b"")

    data = random_bytes(20 * MIB)

    async def pieces():
        for start in range(0, len(data), MIB):
            yield data[start : start + MIB]

    await bucket.upload("large/one", pieces(), len(data))
    for start in (0, 9 * MIB + 1, len(data) - 1):
        async with bucket.open("large/one", start) as stream:
            assert (stream.offset, stream.total) == (start, len(data))
            assert await read(stream) == data[start:]
    assert [(each.path, each.size) async for each in bucket.list("large/")] == [
        ("large/one", len(data))
    ]
    address = await bucket.address("large/one", 60)
    async with aiohttp.ClientSession() as session, session.get(address) as answer:
        assert await answer.read() == data

    for _ in range(2):  # one that is gone is no error
        await bucket.delete("a")
    assert await bucket.lookup("a") is None
    with pytest.raises(TierMissError):
        await bucket.read("a", 10)
    assert bucket.up
    await bucket.close()


async def test_a_new_replica_gets_what_the_others_have_pulled_with_upstream_gone(
    azurite, tmp_path, upstream, redis
):
    data = random_bytes(12 * MIB)
    content = image(data)
    upstream.add_image("library/app", content, "latest")
    tag, blob = "/v2/library/app/manifests/latest", f"/v2/library/app/blobs/{digest_of(data)}"
    options = {"objects": OBJECTS, "first_byte_timeout": "20s", "state": redis.url}
    async with replicas(tmp_path, upstream, 2, **options) as cluster:
        for mirror in cluster.mirrors:
            assert (await mirror.get(tag)).body == content.manifest
            assert (await mirror.get(blob)).body == data
        await eventually(cluster.mirrors[0], 'mirror_uploads_total{result="stored"}', 2)
    assert upstream.count("blob", "GET") == 1
    await upstream.stop()
    (tmp_path / "new").mkdir()
    async with replicas(tmp_path / "new", upstream, 1, **options) as cluster:
        assert (await cluster.mirrors[0].get(tag)).body == content.manifest
        answer = await cluster.mirrors[0].get(blob)
        assert answer.body == data
        assert answer.headers["Cache-Status"] == "mirror; fwd=miss; stored; detail=object-store"
    await upstream.start()
