"""Parts of a blob that nobody has pulled yet: read lazily, in parallel, or in order."""

import asyncio
import hashlib

import aiohttp
import pytest

from tests.fakes import FakeRegistry, Fault, random_bytes
from tests.running import Mirror, eventually, running
from tests.waiting import limit, until

pytestmark = [pytest.mark.slow]

BLOB = "/v2/library/app/blobs/"
REQUESTS = 'mirror_requests_total{kind="blob",result="%s",upstream="docker.io"}'
SERVED = 'mirror_served_bytes_total{kind="blob",upstream="docker.io"}'
MIB = 1 << 20
CHUNK = 8 * MIB


async def chunk(mirror: Mirror, digest: str, start: int, length: int = CHUNK) -> bytes:
    """As containerd 2.3 reads a layer in parallel: an open-ended range, left after one chunk."""
    url = f"{mirror.url}{BLOB}{digest}"
    async with mirror.session.get(url, headers={"Range": f"bytes={start}-"}) as response:
        assert response.status == 206
        assert response.headers["Content-Range"].startswith(f"bytes {start}-")
        body = bytearray()
        async for piece in response.content.iter_any():
            body += piece
            if len(body) >= length:
                response.close()
                break
    return bytes(body[:length])


def counted(figures: dict[str, float]) -> float:
    """How many requests for blobs were answered with bytes."""
    return sum(figures.get(REQUESTS % each, 0) for each in ("miss", "coalesced", "hit"))


@pytest.mark.long
@pytest.mark.slow
async def test_a_layer_read_in_parallel_by_open_ranges_comes_from_upstream_once(tmp_path, upstream):
    data = random_bytes(256 * MIB)
    digest = upstream.add_blob(data)
    upstream.hold(MIB)
    wanted = iter(range(0, len(data), CHUNK))
    right: list[bool] = []

    async def reader() -> None:
        for start in wanted:
            got = await chunk(mirror, digest, start)
            right.append(got == data[start : start + CHUNK])

    fill = {"connections": 1}  # what a further one has on its way when it ends is no part of this
    async with running(tmp_path, {"docker.io": upstream.url}, fill=fill) as mirror:
        readers = [asyncio.create_task(reader()) for _ in range(8)]
        await eventually(mirror, "mirror_clients_waiting", 8)
        upstream.release()
        await asyncio.gather(*readers)
        await eventually(mirror, "mirror_cache_objects", 1)
        await eventually(mirror, "mirror_clients_waiting", 0)
        async with limit():  # the last ones are counted after the clients have their bytes
            while counted(figures := await mirror.metrics()) < len(right):
                await asyncio.sleep(0.01)
    assert right == [True] * (len(data) // CHUNK)
    sent = upstream.sent[digest] / len(data)
    print(f"upstream sent {sent:.3f} times the blob, the mirror {figures[SERVED] / len(data):.3f}")
    assert sent <= 1.05
    assert figures[REQUESTS % "miss"] == 1
    assert counted(figures) == len(right)
    assert figures[REQUESTS % "coalesced"] >= 7
    # Announced are 16 times as many; written is what the system's buffers take behind each chunk.
    assert len(data) <= figures[SERVED] < 4 * len(data), "as written, not as announced"


async def test_the_end_of_a_layer_need_not_wait_for_the_rest_of_it(mirror, upstream):
    """As eStargz is read: the table of contents at the end, then a little here and there."""
    data = random_bytes(48 * MIB)
    digest = upstream.add_blob(data)
    upstream.hold(2 * MIB)
    async with mirror.session.get(f"{mirror.url}{BLOB}{digest}") as whole:
        first = await whole.content.readexactly(MIB)
        for span in [(len(data) - 51, len(data)), (40 * MIB, 40 * MIB + 70_000), (7, 5000)]:
            answer = await mirror.get(BLOB + digest, Range=f"bytes={span[0]}-{span[1] - 1}")
            assert (answer.status, answer.body) == (206, data[slice(*span)])
            assert answer.headers["Content-Range"] == f"bytes {span[0]}-{span[1] - 1}/{len(data)}"
        assert (await mirror.get(BLOB + digest, Range="bytes=-300")).body == data[-300:]
        assert upstream.sent[digest] < 3 * MIB, "the fill is where it was"
        assert upstream.count("blob") == 4, "the fill, and what it had not yet; the rest was there"
        upstream.release()
        assert first + await whole.read() == data
    assert (await mirror.get(BLOB + digest)).headers["Cache-Status"] == "mirror; hit"
    assert upstream.sent[digest] <= 1.05 * len(data)


async def test_many_who_read_the_same_part_ahead_of_a_fill_cost_upstream_one(mirror, upstream):
    data = random_bytes(16 * MIB)
    digest = upstream.add_blob(data)
    upstream.hold(2 * MIB)
    wanted = f"bytes={10 * MIB}-{10 * MIB + 99_999}"
    answers = await asyncio.gather(*(mirror.get(BLOB + digest, Range=wanted) for _ in range(20)))
    assert {answer.body for answer in answers} == {data[10 * MIB : 10 * MIB + 100_000]}
    assert upstream.count("blob") == 2
    await eventually(mirror, REQUESTS % "coalesced", 19)


async def test_what_is_read_ahead_of_a_fill_has_a_budget(mirror, upstream):
    data = random_bytes(32 * MIB)
    digest = upstream.add_blob(data)
    upstream.hold(2 * MIB)
    places = range(len(data) - MIB, 2 * MIB, -MIB)
    wanted = [f"bytes={at}-{at + 199_999}" for at in places]
    asking = [asyncio.create_task(mirror.get(BLOB + digest, Range=part)) for part in wanted]
    await until(lambda: sum(task.done() for task in asking) >= 3)
    await eventually(mirror, "mirror_clients_waiting", len(asking) - 6)
    upstream.release()
    answers = await asyncio.gather(*asking)
    assert [answer.body for answer in answers] == [data[at : at + 200_000] for at in places]
    await eventually(mirror, "mirror_cache_objects", 1)
    print(f"upstream sent {upstream.sent[digest] / len(data):.3f} times the blob")
    assert upstream.count("blob") == 1 + 6, "of 200 KB each, out of 4 % of 32 MiB"
    assert upstream.sent[digest] <= 1.05 * len(data)


async def test_a_process_that_follows_anothers_fill_reads_ahead_of_it_too(tmp_path, upstream):
    data = random_bytes(16 * MIB)
    digest = upstream.add_blob(data)
    upstream.hold(2 * MIB)
    registry = {"docker.io": upstream.url}
    async with running(tmp_path, registry) as leader, running(tmp_path, registry) as follower:
        whole = asyncio.create_task(leader.get(BLOB + digest))
        await eventually(leader, "mirror_fills_in_progress", 1)
        answer = await follower.get(BLOB + digest, Range="bytes=-500")
        assert not whole.done()
        assert answer.body == data[-500:]
        assert (await follower.metrics())[REQUESTS % "coalesced"] == 1
        upstream.release()
        assert (await whole).body == data
    assert upstream.count("blob") == 2
    assert upstream.sent[digest] <= 1.05 * len(data)


@pytest.mark.parametrize(
    "fault",
    [
        Fault(ignore_range=True),
        Fault(status=500),
        Fault(status=429),
        Fault(cut=1000),
        Fault(headers={"Content-Range": "bytes 5-6/7"}),
    ],
    ids=["range ignored", "500", "429", "cut", "another part"],
)
async def test_a_part_that_upstream_does_not_give_comes_with_the_fill(mirror, upstream, fault):
    data = random_bytes(4 * MIB)
    digest = upstream.add_blob(data)
    upstream.hold(MIB // 8)  # all that is sent of a range that was not asked for
    upstream.faults += [Fault(), fault]
    wanted = f"bytes={3 * MIB}-{3 * MIB + 9999}"
    asking = asyncio.create_task(mirror.get(BLOB + digest, Range=wanted))
    await until(lambda: upstream.count("blob") == 2)
    if fault.ignore_range:
        await until(lambda: upstream.connections == 1)  # the mirror has cut off the second answer
    upstream.release()
    answer = await asking
    assert answer.body == data[3 * MIB : 3 * MIB + 10_000]
    assert upstream.count("blob") == 2
    assert upstream.sent[digest] <= 1.05 * len(data)


async def test_nothing_wrong_is_stored_of_what_was_relayed(tmp_path, upstream):
    data = random_bytes(8 * MIB)
    digest = upstream.add_blob(data)
    upstream.hold(2 * MIB)
    upstream.faults += [Fault(times=2, flip=len(data) - 10)]
    async with running(tmp_path, {"docker.io": upstream.url}) as mirror:
        whole = asyncio.create_task(mirror.get(BLOB + digest))
        relayed = await mirror.get(BLOB + digest, Range="bytes=-100")
        assert relayed.body[:90] == data[-100:-10]
        assert relayed.body != data[-100:], "as upstream sent it"
        upstream.release()
        with pytest.raises(aiohttp.ClientError):
            await whole
        await eventually(mirror, "mirror_cache_bytes", 0)
        answer = await mirror.get(BLOB + digest)
        assert hashlib.sha256(answer.body).hexdigest() == digest.partition(":")[2]
        assert (await mirror.get(BLOB + digest, Range="bytes=-100")).body == data[-100:]


async def test_the_headers_of_a_part_do_not_wait_for_its_bytes(mirror, upstream: FakeRegistry):
    """containerd 2.3 gives up after 30 s without headers."""
    data = random_bytes(16 * MIB)
    digest = upstream.add_blob(data)
    upstream.faults += [Fault(stall=MIB)]
    url = f"{mirror.url}{BLOB}{digest}"
    request = mirror.session.get(url, headers={"Range": f"bytes={CHUNK}-"})
    async with limit(), request as response:
        assert response.headers["Content-Length"] == str(len(data) - CHUNK)
        response.close()


async def test_64_ranges_are_answered_and_more_are_the_whole(mirror, upstream):
    data = random_bytes(100_000)
    digest = upstream.add_blob(data)
    for count, status in ((64, 206), (65, 200), (900, 200)):
        ranges = "bytes=" + ",".join(f"{2 * number}-{2 * number}" for number in range(count))
        answer = await mirror.get(f"{BLOB}{digest}", Range=ranges)
        assert answer.status == status
        if status == 200:
            assert answer.body == data
        else:
            assert answer.body.count(b"Content-Range: ") == count
