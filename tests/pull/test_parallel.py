"""Large blobs over several connections, and how many bytes a second there may be."""

import asyncio
import time
from collections import Counter

import aiohttp
import pytest

from mirror.oci.digest import Digest
from mirror.upstream.responses import Pace
from tests.fakes import FakeRegistry, Fault, random_bytes
from tests.running import Mirror, eventually, running
from tests.waiting import until

pytestmark = [pytest.mark.slow]


BLOB = "/v2/library/app/blobs/"
MIB = 1 << 20
SMALL = {"segment": "1MiB", "parallel_from": "4MiB"}  # so that tests take no minutes


async def fetched(mirror: Mirror, digest: str) -> str:
    """The digest of what arrives."""
    hasher = Digest.parse(digest).hasher()
    async with mirror.session.get(f"{mirror.url}{BLOB}{digest}") as response:
        async for piece in response.content.iter_any():
            hasher.update(piece)
    return f"sha256:{hasher.hexdigest()}"


def ranges(upstream: FakeRegistry) -> list[str]:
    """What every request for a blob asked for."""
    return [seen.headers.get("Range", "all") for seen in upstream.seen if seen.kind == "blob"]


@pytest.fixture
def slow(upstream: FakeRegistry) -> FakeRegistry:
    """An upstream that gives each connection 4 MiB/s, far less than a busy machine can take."""
    upstream.rate_per_connection = 4 * MIB
    return upstream


async def test_a_blob_that_is_not_large_comes_over_one_connection(mirror, slow):
    digest = slow.add_blob(random_bytes(8 * MIB))
    assert await fetched(mirror, digest) == digest
    assert ranges(slow) == ["all"]


@pytest.mark.long
@pytest.mark.parametrize(
    ("first", "second"),
    [
        (Fault(), Fault(ignore_range=True)),
        (Fault(headers={"Accept-Ranges": "none"}), Fault(status=500, times=0)),
        (Fault(), Fault(status=429, headers={"Retry-After": "60"})),
        (Fault(), Fault(status=503)),
        (Fault(), Fault(status=416)),
        (Fault(), Fault(hang_before=True)),
        (Fault(), Fault(refuse=True, times=2)),  # once may be an idle connection that ended
        (Fault(), Fault(headers={"Content-Range": "bytes 5-9/16777216"})),
        (Fault(), Fault(headers={"Content-Range": None})),
    ],
    ids=["ignores", "says so", "429", "503", "416", "hangs", "refuses", "wrong part", "no part"],
)
async def test_an_upstream_that_minds_a_second_connection_keeps_the_first(
    tmp_path, slow, first, second
):
    data = random_bytes(16 * MIB)
    digest = slow.add_blob(data)
    slow.faults += [first, second]
    fetch = {"first_byte_timeout": "2s"}
    async with running(tmp_path, {"docker.io": slow.url}, fetch=fetch, fill=SMALL) as mirror:
        assert await fetched(mirror, digest) == digest
        await eventually(mirror, 'mirror_fills_total{result="stored",upstream="docker.io"}', 1)
    assert slow.faults == [] or all(fault.times == 0 for fault in slow.faults)
    assert len(ranges(slow)) <= 4, "one more that was just being asked for, and what it left"
    assert slow.sent[digest] <= 1.05 * len(data)


@pytest.mark.long
async def test_an_upstream_that_says_429_in_the_middle_is_left_alone_and_then_gone_on_with(
    tmp_path, slow
):
    data = random_bytes(16 * MIB)
    digest = slow.add_blob(data)
    slow.faults += [Fault(times=9), Fault(status=429, headers={"Retry-After": "1"})]
    async with running(tmp_path, {"docker.io": slow.url}, fill=SMALL) as mirror:
        assert await fetched(mirror, digest) == digest
        await eventually(mirror, "mirror_cache_objects", 1)
    asked = ranges(slow)
    print(asked)
    assert asked[-1].endswith("-"), "one connection got all the rest"
    assert len(asked) <= 14, "nobody else asked after one was told 429"
    assert slow.sent[digest] <= 1.05 * len(data)


@pytest.mark.long
async def test_segments_that_break_are_gone_on_with(tmp_path, slow):
    data = random_bytes(16 * MIB)
    digest = slow.add_blob(data)
    breaks = [Fault(cut=MIB), Fault(reset=MIB + 5), Fault(stall=MIB // 2), Fault(status=502)]
    slow.faults += [Fault(times=3), *breaks]
    fetch = {"idle_timeout": "2s"}
    async with running(tmp_path, {"docker.io": slow.url}, fetch=fetch, fill=SMALL) as mirror:
        assert await fetched(mirror, digest) == digest
        await eventually(mirror, "mirror_cache_objects", 1)
    assert all(fault.times == 0 for fault in slow.faults)
    assert slow.sent[digest] <= 1.05 * len(data)


async def test_what_was_left_is_gone_on_with_over_several_connections(tmp_path, slow):
    data = random_bytes(20 * MIB)
    digest = slow.add_blob(data)
    async with running(tmp_path, {"docker.io": slow.url}, fill=SMALL) as mirror:
        left = tmp_path / "partial" / f"blobs.{digest.replace(':', '.')}"
        left.write_bytes(data[: 4 * MIB + 1])
        assert await fetched(mirror, digest) == digest
        await eventually(mirror, "mirror_cache_objects", 1)
    assert ranges(slow)[0] == f"bytes={4 * MIB + 1}-"
    assert len(ranges(slow)) > 4
    assert slow.sent[digest] <= 1.05 * 16 * MIB


async def test_everybody_reads_it_as_it_grows(tmp_path, slow):
    data = random_bytes(16 * MIB)
    digest = slow.add_blob(data)
    async with running(tmp_path, {"docker.io": slow.url}, fill=SMALL) as mirror:
        leading = asyncio.create_task(fetched(mirror, digest))
        await until(lambda: len(ranges(slow)) > 2)
        slow.hold(0)  # what is here already comes before anything more does
        async with mirror.session.get(f"{mirror.url}{BLOB}{digest}") as response:
            first = await response.content.readexactly(MIB)
            slow.release()
            assert first + await response.read() == data
        assert await leading == digest
    assert slow.sent[digest] <= 1.05 * len(data)


@pytest.mark.long
@pytest.mark.parametrize("at", [1, 7 * MIB, 11 * MIB, 16 * MIB - 1])
async def test_a_flipped_byte_in_any_segment_is_never_given_out_as_the_whole(tmp_path, slow, at):
    data = random_bytes(16 * MIB)
    digest = slow.add_blob(data)
    slow.faults.append(Fault(flip=at, times=99))
    async with running(tmp_path, {"docker.io": slow.url}, fill=SMALL) as mirror:
        with pytest.raises(aiohttp.ClientError):
            await fetched(mirror, digest)
        mismatched = 'mirror_fills_total{result="digest_mismatch",upstream="docker.io"}'
        await eventually(mirror, mismatched, 1)
        assert (await mirror.metrics())["mirror_cache_objects"] == 0
    assert len(ranges(slow)) > 4


@pytest.mark.long
async def test_a_mirror_that_stops_in_the_middle_leaves_a_prefix(tmp_path, slow):
    data = random_bytes(16 * MIB)
    digest = slow.add_blob(data)
    async with running(tmp_path, {"docker.io": slow.url}, fill=SMALL) as mirror:
        response = await mirror.session.get(f"{mirror.url}{BLOB}{digest}")
        await response.content.readexactly(6 * MIB)
        response.close()
    (left,) = (tmp_path / "partial").glob("blobs.*")
    assert left.stat().st_size >= 6 * MIB
    assert data.startswith(left.read_bytes())
    async with running(tmp_path, {"docker.io": slow.url}, fill=SMALL) as mirror:
        assert await fetched(mirror, digest) == digest


@pytest.mark.long
@pytest.mark.parametrize("max_size", ["1GiB", "1MiB"], ids=["stored", "passing through"])
async def test_two_downloads_share_the_rate_that_is_allowed(tmp_path, upstream, max_size):
    size, rate = 6 * MIB, 4 * MIB
    digests = [upstream.add_blob(random_bytes(size, seed)) for seed in (1, 2)]
    got: Counter[str] = Counter()
    table = {"url": upstream.url, "max_rate": "4MiB"}

    async def download(mirror: Mirror, digest: str) -> int:
        """How much the other one had when this one was done."""
        async with mirror.session.get(f"{mirror.url}{BLOB}{digest}") as response:
            async for piece in response.content.iter_any():
                got[digest] += len(piece)
        return min(got.values())

    cache = {"max_size": max_size}
    async with running(tmp_path, {"docker.io": table}, cache=cache) as mirror:
        started = time.monotonic()
        others = await asyncio.gather(*(download(mirror, digest) for digest in digests))
        seconds = time.monotonic() - started
    print(f"{2 * size / seconds / MIB:.2f} MiB/s; the other one had {min(others) / size:.2f}")
    assert 2 * size / seconds <= 1.15 * rate
    assert min(others) > 0.5 * size, "neither was done long before the other"


async def test_more_connections_are_no_larger_share_of_the_line():
    pace, piece = Pace(64 * MIB), 64 * 1024
    got: Counter[str] = Counter()

    async def take(blob: str) -> None:
        turn = pace.turn(blob)
        while True:
            await turn(piece)
            got[blob] += piece

    takers = [asyncio.create_task(take(blob)) for blob in "aaaab"]
    await until(lambda: got.total() > 16 * MIB)  # what an idle line has saved up goes first
    got.clear()
    started = time.monotonic()
    await until(lambda: got.total() > 32 * MIB)
    seconds = time.monotonic() - started
    for taker in takers:
        taker.cancel()
    await asyncio.wait(takers)
    assert got["a"] == pytest.approx(got["b"], rel=0.1)
    assert got.total() <= 1.25 * 64 * MIB * seconds


async def test_no_more_blobs_at_once_than_the_registry_is_to_be_asked_for(tmp_path, slow):
    digests = [slow.add_blob(random_bytes(4 * MIB, seed)) for seed in range(4)]
    table = {"url": slow.url, "max_connections": 2}
    slow.hold(MIB)
    async with running(tmp_path, {"docker.io": table}) as mirror:
        pulls = [asyncio.create_task(fetched(mirror, digest)) for digest in digests]
        await eventually(mirror, "mirror_clients_waiting", 4)
        await until(lambda: slow.count("blob") == 2)
        await mirror.get("/v2/")
        assert slow.count("blob") == 2, "the others wait for their turn"
        slow.release()
        assert set(await asyncio.gather(*pulls)) == set(digests)


@pytest.mark.long
async def test_further_connections_keep_to_the_bound_too(tmp_path, slow):
    digest = slow.add_blob(random_bytes(16 * MIB))
    table = {"url": slow.url, "max_connections": 1}
    async with running(tmp_path, {"docker.io": table}, fill=SMALL) as mirror:
        assert await fetched(mirror, digest) == digest
    assert ranges(slow) == ["all"]
