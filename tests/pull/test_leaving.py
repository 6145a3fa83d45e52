"""What clients that leave have begun ends soon, and costs upstream little."""

import asyncio

import pytest

from tests.fakes import FakeRegistry, Fault, image, random_bytes
from tests.running import Answer, Mirror, eventually, running
from tests.waiting import LIMIT_SECONDS, limit, until

pytestmark = [pytest.mark.slow]

MIB = 1 << 20
HUB = "docker.io"
APP = "/v2/library/app"
ARRIVED = 'mirror_upstream_bytes_total{kind="blob",upstream="docker.io"}'
LINGERING = 3  # downloads of a client that go on for a moment without it


async def all_ended(mirror: Mirror) -> None:
    async with limit():
        while (await mirror.metrics())["mirror_fills_in_progress"]:
            await asyncio.sleep(0.05)


async def leave(pulls: list[asyncio.Task[Answer]]) -> None:
    for pull in pulls:
        pull.cancel()
    await asyncio.gather(*pulls, return_exceptions=True)


async def begun(
    mirror: Mirror, upstream: FakeRegistry, digests: list[str], size: int = 64 * 1024
) -> list[asyncio.Task[Answer]]:
    """Pulls of which each has got so much, and no more before ``upstream.release()``."""
    upstream.hold(size)
    pulls = [asyncio.create_task(mirror.get(f"{APP}/blobs/{digest}")) for digest in digests]
    await eventually(mirror, ARRIVED, size * len(digests))
    return pulls


async def without_readers(mirror: Mirror) -> None:
    async with limit():
        while (await mirror.metrics())["mirror_clients_waiting"]:
            await asyncio.sleep(0.01)


@pytest.mark.long
async def test_a_client_that_leaves_many_blobs_has_few_of_them_fetched(mirror, upstream):
    count = 40
    digests = [upstream.add_blob(random_bytes(5 * MIB, seed)) for seed in range(count)]
    await leave(await begun(mirror, upstream, digests))
    await without_readers(mirror)
    await until(lambda: upstream.connections <= LINGERING)
    upstream.release()
    await all_ended(mirror)
    sent = sum(upstream.sent.values())
    print(f"{sent / MIB:.1f} of {5 * count} MiB were fetched")
    assert sent <= LINGERING * 5 * MIB + count * 256 * 1024


async def test_a_fill_without_readers_brings_a_few_mib_more(mirror, upstream):
    digest = upstream.add_blob(random_bytes(96 * MIB))
    await leave(await begun(mirror, upstream, [digest]))
    await without_readers(mirror)
    upstream.release()
    await all_ended(mirror)
    print(f"{upstream.sent[digest] / MIB:.1f} of 96 MiB were fetched")
    assert upstream.sent[digest] < 32 * MIB, "8 MiB, and the buffers on the way"


async def test_several_connections_for_one_blob_bring_no_more(tmp_path, upstream):
    fill = {"connections": 4, "segment": "8MiB", "parallel_from": "16MiB"}
    async with running(tmp_path, {HUB: upstream.url}, fill=fill) as mirror:
        digest = upstream.add_blob(random_bytes(192 * MIB))
        upstream.rate_per_connection = 3 * MIB  # little for a busy machine
        pull = asyncio.create_task(mirror.get(f"{APP}/blobs/{digest}"))
        await until(lambda: upstream.connections == 4)
        await leave([pull])
        await without_readers(mirror)
        sent, upstream.rate_per_connection = upstream.sent[digest], None
        await all_ended(mirror)
        more = upstream.sent[digest] - sent
        print(f"{more / MIB:.1f} of {192 - sent / MIB:.1f} MiB were fetched")
        assert more < 64 * MIB, "8 MiB, and the buffers on the way of four connections"


@pytest.mark.long
async def test_a_fill_that_is_nearly_done_is_finished(mirror, upstream):
    data = random_bytes(32 * MIB)
    digest = upstream.add_blob(data)
    upstream.faults.append(Fault(stall=30 * MIB))
    pull = asyncio.create_task(mirror.get(f"{APP}/blobs/{digest}"))
    await eventually(mirror, ARRIVED, 30 * MIB)
    await leave([pull])
    await asyncio.sleep(3.5)  # a little more than the moment that others have
    assert (await mirror.metrics())["mirror_fills_in_progress"] == 1


async def test_a_fill_that_is_nearly_done_may_bring_its_last_bytes_too(
    mirror, upstream, monkeypatch
):
    monkeypatch.setattr("mirror.pull.fill.UNWANTED_BYTES", MIB)
    monkeypatch.setattr("mirror.pull.fill.UNWANTED_SECONDS", LIMIT_SECONDS)
    digest = upstream.add_blob(random_bytes(40 * MIB))
    upstream.hold(38 * MIB + MIB // 2)
    async with mirror.session.get(f"{mirror.url}{APP}/blobs/{digest}") as answer:
        # All but the batch that arrived last is written: more than nine tenths.
        await answer.content.readexactly(37 * MIB)
        answer.close()
    await without_readers(mirror)
    upstream.release()
    await eventually(mirror, 'mirror_fills_total{result="stored",upstream="docker.io"}', 1)
    assert upstream.sent[digest] == 40 * MIB


async def test_a_client_that_comes_back_gets_the_rest(mirror, upstream):
    count = 12
    blobs = [random_bytes(5 * MIB, seed) for seed in range(count)]
    digests = [upstream.add_blob(blob) for blob in blobs]
    await leave(await begun(mirror, upstream, digests, 3 * MIB))
    await without_readers(mirror)
    await until(lambda: upstream.connections <= LINGERING)
    again = [asyncio.create_task(mirror.get(f"{APP}/blobs/{digest}")) for digest in digests]
    await eventually(mirror, "mirror_clients_waiting", count)
    upstream.release()
    assert [(await pull).body for pull in again] == blobs
    assert sum(upstream.sent.values()) < 1.2 * count * 5 * MIB


async def broken_off(mirror: Mirror, at_least: int) -> int:
    """How many requests to upstream had no answer, once there are so many."""
    async with asyncio.timeout(20):  # less than the 30 s after which upstream is given up
        while True:
            figures = await mirror.metrics()
            count = sum(
                value
                for name, value in figures.items()
                if name.startswith("mirror_upstream_requests_total") and 'code="error"' in name
            )
            if count >= at_least:
                return int(count)
            await asyncio.sleep(0.05)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["tags", "referrers", "manifest", "size"])
async def test_questions_that_no_client_waits_for_end(mirror, upstream, kind):
    upstream.add_image("library/app", image(b"layer"), "1")
    digest = upstream.add_blob(b"a blob")
    paths = {
        "tags": "tags/list?last=%d",
        "referrers": f"referrers/{digest}?artifactType=%d",
        "manifest": "manifests/tag-%d",
        "size": "blobs/sha256:%064d",
    }
    method = "HEAD" if kind == "size" else "GET"
    upstream.faults.append(Fault("", hang_before=True, times=999))
    asked = [
        asyncio.create_task(mirror.get(f"{APP}/{paths[kind] % number}", method))
        for number in range(60)
    ]
    await until(lambda: len(upstream.seen) == 60)
    await leave(asked)
    assert await broken_off(mirror, at_least=52) <= 60, "at once but for a few"
    assert await broken_off(mirror, at_least=60) == 60
