"""A mirror behind a mirror: a branch office asks the headquarters, which asks the registry."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest

from tests.fakes import FakeRegistry, Fault, image, random_bytes
from tests.running import Mirror, eventually, running

pytestmark = [pytest.mark.slow]


REPO = "team/app"
MIB = 1 << 20


@dataclass
class Chain:
    """The registry is ghcr.io for both mirrors; the second knows no other way than the first."""

    origin: FakeRegistry
    first: Mirror
    second: Mirror
    first_running: AsyncExitStack


@pytest.fixture
async def chain(tmp_path: Path, upstream: FakeRegistry) -> AsyncIterator[Chain]:
    async with AsyncExitStack() as stack:
        first_running = await stack.enter_async_context(AsyncExitStack())
        first = await first_running.enter_async_context(
            running(tmp_path / "first", {"ghcr.io": upstream.url}, tags={"max_age": "100ms"})
        )
        second = await stack.enter_async_context(
            running(
                tmp_path / "second",
                {"ghcr.io": f"{first.url}/ghcr.io"},
                tags={"max_age": "100ms"},
                fill={"parallel_from": "8MiB", "segment": "2MiB"},
            )
        )
        yield Chain(upstream, first, second, first_running)


def at(kind: str, reference: str) -> str:
    return f"/v2/{REPO}/{kind}/{reference}?ns=ghcr.io"


async def test_a_pull_through_two_mirrors_cold_warm_and_with_everything_gone(chain):
    app = image(random_bytes(3 * MIB), random_bytes(1000, 1))
    chain.origin.add_image(REPO, app, "1")

    async def pull() -> None:
        head = await chain.second.get(at("manifests", "1"), "HEAD")
        assert head.headers["Docker-Content-Digest"] == app.digest
        manifest = await chain.second.get(at("manifests", app.digest))
        assert manifest.body == app.manifest
        blobs = [await chain.second.get(at("blobs", digest)) for digest in app.digests]
        assert [blob.body for blob in blobs] == list(app.blobs)

    await pull()
    assert chain.origin.count("blob", "GET") == 3
    asked = chain.origin.count("blob") + chain.origin.count("manifest", "GET")
    await asyncio.sleep(0.05)
    await pull()
    await chain.origin.stop()
    await pull()
    await chain.first_running.aclose()
    await pull()
    assert chain.origin.count("blob") + chain.origin.count("manifest", "GET") == asked
    assert not any("ns=" in seen.path for seen in chain.origin.seen)
    await chain.origin.start()


@pytest.mark.long
async def test_many_clients_of_two_mirrors_cost_the_registry_one_download(chain):
    data = random_bytes(16 * MIB)
    digest = chain.origin.add_blob(data)
    chain.origin.rate_per_connection = 4 * MIB
    answers = await asyncio.gather(
        *(chain.second.get(at("blobs", digest)) for _ in range(6)),
        *(chain.first.get(at("blobs", digest)) for _ in range(2)),
    )
    assert all(answer.body == data for answer in answers)
    for mirror in (chain.first, chain.second):
        await eventually(mirror, "mirror_cache_objects", 1)
    ranges = [seen.headers.get("Range", "all") for seen in chain.origin.seen]
    print(f"the registry sent {chain.origin.sent[digest] / len(data):.3f} times the blob: {ranges}")
    assert chain.origin.sent[digest] <= 1.05 * len(data)


@pytest.mark.parametrize("size", [0, 1, 70_000, 5 * MIB])
async def test_the_head_of_a_blob_that_nobody_has_pulled_is_right(chain, size):
    data = random_bytes(size)
    digest = chain.origin.add_blob(data)
    for mirror in (chain.second, chain.first, chain.second):
        head = await mirror.get(at("blobs", digest), "HEAD")
        assert (head.status, head.headers["Content-Length"]) == (200, str(size))
        assert head.headers["Docker-Content-Digest"] == digest
    assert chain.origin.count("blob", "GET") == 0
    assert (await chain.second.get(at("blobs", digest))).body == data
    missing = "sha256:" + "0" * 64
    for method in ("HEAD", "GET"):
        assert (await chain.second.get(at("blobs", missing), method)).status == 404
        assert (await chain.second.get(at("manifests", missing), method)).status == 404


async def test_a_wrong_byte_gets_through_neither(chain):
    data = random_bytes(MIB)
    digest = chain.origin.add_blob(data)
    chain.origin.faults.append(Fault(flip=500_000))
    try:
        answer = await chain.second.get(at("blobs", digest))
    except aiohttp.ClientError:
        await eventually(chain.second, "mirror_cache_objects", 0)
        answer = await chain.second.get(at("blobs", digest))
    # No error: the second mirror had no byte yet when the first one broke off, and asked again.
    assert answer.body == data
