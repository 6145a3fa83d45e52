"""Blobs as a client sees them."""

import asyncio
import contextlib
import email
import hashlib
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from yarl import URL

from tests.fakes import FakeRegistry, Fault, random_bytes
from tests.running import Answer, eventually, running
from tests.waiting import limit

pytestmark = [pytest.mark.slow]

REQUESTS = 'mirror_requests_total{kind="blob",result="%s",upstream="docker.io"}'
FILLS = 'mirror_fills_total{result="%s",upstream="docker.io"}'
MIB = 1 << 20


def path(digest: str, repo: str = "library/app") -> str:
    return f"/v2/{repo}/blobs/{digest}"


def held_bytes(directory) -> int:
    """What everything below a directory takes on the disk, as ``du`` counts."""
    sizes = {}
    for file in (directory, *directory.rglob("*")):
        with contextlib.suppress(FileNotFoundError):
            found = file.stat()
            sizes[found.st_ino] = found.st_blocks * 512
    return sum(sizes.values())


async def test_a_miss_is_streamed_stored_and_then_served_without_upstream(mirror, upstream):
    data = random_bytes(3 * MIB)
    digest = upstream.add_blob(data)
    cold = await mirror.get(path(digest))
    await upstream.stop()
    warm = await mirror.get(path(digest))
    assert cold.body == warm.body == data
    assert cold.headers["Cache-Status"] == "mirror; fwd=miss; stored"
    assert warm.headers["Cache-Status"] == "mirror; hit"
    for answer in (cold, warm):
        assert answer.headers["Docker-Content-Digest"] == digest
        assert answer.headers["ETag"] == f'"{digest}"'
        assert answer.headers["Content-Length"] == str(len(data))
    await upstream.start()


@pytest.mark.parametrize("size", [0, 1, 64 * 1024 - 1, 64 * 1024, 64 * 1024 + 1, 5 * MIB + 7])
@pytest.mark.parametrize("unknown_length", [False, True])
async def test_every_size_arrives_whole(mirror, upstream, size, unknown_length):
    data = random_bytes(size)
    digest = upstream.add_blob(data)
    upstream.faults.append(Fault(method="GET", unknown_length=unknown_length))
    assert (await mirror.get(path(digest))).body == data
    warm = await mirror.get(path(digest))
    assert warm.body == data
    assert warm.headers["Content-Length"] == str(size)
    assert upstream.count("blob", "GET") == 1


async def test_sha512_blobs_are_verified_and_stored(mirror, upstream):
    data = random_bytes(MIB)
    digest = upstream.add_blob(data, "sha512")
    assert (await mirror.get(path(digest))).body == data
    assert (await mirror.get(path(digest))).headers["Cache-Status"] == "mirror; hit"


async def test_followers_share_one_upstream_request(mirror, upstream):
    data = random_bytes(8 * MIB)
    digest = upstream.add_blob(data)
    upstream.hold(MIB)
    asking = [asyncio.create_task(mirror.get(path(digest))) for _ in range(16)]
    await eventually(mirror, "mirror_clients_waiting", 16)
    upstream.release()
    answers = await asyncio.gather(*asking)
    assert all(answer.body == data for answer in answers)
    assert upstream.count("blob") == 1
    await eventually(mirror, REQUESTS % "miss", 1)
    await eventually(mirror, REQUESTS % "coalesced", 15)


async def test_followers_from_other_repositories_share_it_too(mirror, upstream):
    data = random_bytes(4 * MIB)
    digest = upstream.add_blob(data)
    upstream.hold(MIB)
    paths = [path(digest, f"library/app{number}") for number in range(4)]
    asking = [asyncio.create_task(mirror.get(each)) for each in paths]
    await eventually(mirror, "mirror_clients_waiting", 4)
    upstream.release()
    answers = await asyncio.gather(*asking)
    assert all(answer.body == data for answer in answers)
    assert upstream.count("blob") == 1


async def test_a_refusal_for_one_repository_is_not_anothers(tmp_path):
    async with FakeRegistry() as upstream:
        data = random_bytes(MIB)
        digest = upstream.add_blob(data)

        def guard(request, where):
            return web.Response(status=403) if "/secret/" in where else None

        upstream.guard = guard
        async with running(tmp_path, {"docker.io": upstream.url}) as mirror:
            refused, given = await asyncio.gather(
                mirror.get(path(digest, "library/secret")),
                mirror.get(path(digest, "library/app")),
            )
    assert refused.status == 403
    assert given.body == data


@pytest.mark.parametrize(
    ("wanted", "span"),
    [("bytes=5-9", (5, 10)), ("bytes=1000000-", (1000000, None)), ("bytes=-7", (-7, None))],
)
async def test_ranges_of_stored_and_of_growing_blobs(mirror, upstream, wanted, span):
    data = random_bytes(3 * MIB)
    digest = upstream.add_blob(data)
    for _ in ("growing", "stored"):
        answer = await mirror.get(path(digest), Range=wanted)
        assert answer.status == 206
        assert answer.body == data[slice(*span)]
        start = span[0] % len(data)
        end = start + len(answer.body) - 1
        assert answer.headers["Content-Range"] == f"bytes {start}-{end}/{len(data)}"


async def test_ranges_that_make_no_sense_are_416(mirror, upstream):
    data = random_bytes(1000)
    digest = upstream.add_blob(data)
    for wanted in ("bytes=1000-", "bytes=9-5", "bytes=x-", "bytes=-0"):
        answer = await mirror.get(path(digest), Range=wanted)
        assert answer.status == 416, wanted
        assert answer.headers["Content-Range"] == "bytes */1000"
    assert (await mirror.get(path(digest), Range="lines=1-2")).status == 200
    assert (await mirror.get(path(digest), Range="bytes=1-2", If_Range='"other"')).status == 200
    assert (await mirror.get(path(digest), Range="bytes=1-2", If_Range=f'"{digest}"')).status == 206


def parts_of(answer: Answer) -> list[tuple[str | None, bytes]]:
    """The parts of a body of type multipart/byteranges: each one's Content-Range and bytes."""
    kind = f"Content-Type: {answer.headers['Content-Type']}\r\n\r\n".encode()
    parts: Any = email.message_from_bytes(kind + answer.body).get_payload()
    return [(part["Content-Range"], part.get_payload(decode=True)) for part in parts]


async def test_several_ranges_come_as_parts_of_one_body(mirror, upstream):
    data = bytes(range(97, 123)) * 10_000
    digest = upstream.add_blob(data)
    spans = [(5, 10), (200_000, 200_100), (len(data) - 26, len(data)), (100, 101)]
    wanted = "bytes=" + ",".join(f"{start}-{stop - 1}" for start, stop in spans)
    for _ in ("growing", "stored"):
        answer = await mirror.get(path(digest), Range=wanted)
        assert answer.status == 206
        assert answer.headers["Content-Length"] == str(len(answer.body))
        assert parts_of(answer) == [
            (f"bytes {start}-{stop - 1}/{len(data)}", data[start:stop]) for start, stop in spans
        ]
    one = await mirror.get(path(digest), Range=f"bytes=7-9,{len(data)}-")
    assert (one.headers["Content-Range"], one.body) == (f"bytes 7-9/{len(data)}", data[7:10])
    none = await mirror.get(path(digest), Range=f"bytes={len(data)}-,{len(data) + 5}-")
    assert none.status == 416
    assert (await mirror.get(path(digest), Range="bytes=0-,0-,0-")).body == data
    assert upstream.count("blob") == 1


async def test_a_conditional_request_is_304(mirror, upstream):
    digest = upstream.add_blob(b"content")
    other = f'"{digest[:-1]}"'
    for method in ("GET", "HEAD"):
        for known in (f'"{digest}"', f'W/"{digest}"', f'{other}, "{digest}"', digest, "*"):
            answer = await mirror.get(path(digest), method, If_None_Match=known)
            assert (answer.status, answer.body) == (304, b""), (method, known)
        assert (await mirror.get(path(digest), method, If_None_Match=other)).status == 200
        fields = [("If-None-Match", other), ("If-None-Match", f'"{digest}"')]
        url = URL(mirror.url + path(digest))
        async with mirror.session.request(method, url, headers=fields) as several:
            assert several.status == 304


async def test_head_asks_upstream_for_a_blob_that_nobody_has_pulled(mirror, upstream):
    digest = upstream.add_blob(bytes(12345))
    cold = await mirror.get(path(digest), "HEAD")
    assert (cold.status, cold.headers["Content-Length"]) == (200, "12345")
    assert upstream.count("blob", "GET") == 0
    await mirror.get(path(digest))
    assert (await mirror.get(path(digest), "HEAD")).headers["Cache-Status"] == "mirror; hit"


async def test_a_missing_blob_is_remembered_as_missing(mirror, upstream):
    digest = "sha256:" + "0" * 64
    for _ in range(3):
        answer = await mirror.get(path(digest))
        assert answer.status == 404
        assert b"BLOB_UNKNOWN" in answer.body
    assert upstream.count("blob") == 1
    assert (await mirror.metrics())[REQUESTS % "negative"] == 3


@pytest.mark.parametrize("flip", [0, MIB, 2 * MIB - 1])
async def test_a_flipped_byte_reaches_nobody_whole_and_is_not_stored(mirror, upstream, flip):
    data = random_bytes(2 * MIB)
    digest = upstream.add_blob(data)
    upstream.faults.append(Fault(flip=flip))
    with pytest.raises(aiohttp.ClientError):
        await mirror.get(path(digest))
    await eventually(mirror, FILLS % "digest_mismatch", 1)
    await eventually(mirror, "mirror_cache_bytes", 0)
    again = await mirror.get(path(digest))
    assert hashlib.sha256(again.body).hexdigest() == digest.partition(":")[2]


@pytest.mark.parametrize("wanted", ["bytes=0-999", "bytes=400-", "bytes=100000-299999"])
async def test_a_part_of_what_turns_out_wrong_is_not_given_whole_either(mirror, upstream, wanted):
    """Nobody can verify a part, so its end waits for the whole."""
    digest = upstream.add_blob(random_bytes(1 << 20))
    upstream.faults += [Fault(flip=500), Fault(flip=200_000)]
    for _ in range(2):
        with contextlib.suppress(aiohttp.ClientError):
            answer = await mirror.get(f"/v2/library/app/blobs/{digest}", Range=wanted)
            raise AssertionError(f"{answer.status} with {len(answer.body)} bytes")


async def test_a_flipped_byte_breaks_off_every_client(mirror, upstream):
    data = random_bytes(4 * MIB)
    digest = upstream.add_blob(data)
    upstream.hold(MIB)
    upstream.faults.append(Fault(flip=len(data) - 1))
    asking = [asyncio.create_task(mirror.get(path(digest))) for _ in range(8)]
    await eventually(mirror, "mirror_clients_waiting", 8)
    upstream.release()
    answers = await asyncio.gather(*asking, return_exceptions=True)
    assert all(isinstance(answer, aiohttp.ClientError) for answer in answers)


async def test_a_blob_larger_than_the_cache_passes_through_verified(tmp_path, upstream):
    data = random_bytes(4 * MIB)
    digest = upstream.add_blob(data)
    cache = {"max_size": "1MiB"}
    async with running(tmp_path / "c", {"docker.io": upstream.url}, cache=cache) as mirror:
        for _ in range(2):
            answer = await mirror.get(path(digest))
            assert answer.body == data
            assert "stored" not in answer.headers["Cache-Status"]
        part = await mirror.get(path(digest), Range=f"bytes={3 * MIB}-")
        assert part.body == data[3 * MIB :]
        assert (await mirror.metrics())["mirror_cache_bytes"] == 0
        upstream.faults += [Fault(times=2, flip=5)]
        with pytest.raises(aiohttp.ClientError):
            await mirror.get(path(digest))


async def test_a_broken_connection_goes_on_where_it_stopped_unnoticed(mirror, upstream):
    data = random_bytes(16 * MIB)
    digest = upstream.add_blob(data)
    upstream.faults += [Fault(cut=3 * MIB), Fault(reset=MIB), Fault(cut=MIB // 2)]
    assert (await mirror.get(path(digest))).body == data
    assert upstream.count("blob") == 4
    await eventually(mirror, FILLS % "resumed", 1)


async def test_an_upstream_that_ignores_range_is_read_from_the_start(mirror, upstream):
    data = random_bytes(4 * MIB)
    digest = upstream.add_blob(data)
    upstream.faults += [Fault(cut=MIB), Fault(ignore_range=True)]
    assert (await mirror.get(path(digest))).body == data


async def test_an_answer_shorter_than_the_blob_is_completed(mirror, upstream):
    """As 206 with a Content-Range that promises more than its own Content-Length."""
    data = random_bytes(4 * MIB)
    digest = upstream.add_blob(data)
    short = {"Content-Range": f"bytes {MIB}-{len(data) - 1}/{len(data)}"}
    upstream.faults += [Fault(cut=MIB), Fault(cut=MIB, headers=short, unknown_length=True)]
    assert (await mirror.get(path(digest))).body == data


async def test_what_an_earlier_mirror_had_is_not_asked_for_again(tmp_path, upstream):
    data = random_bytes(8 * MIB)
    digest = upstream.add_blob(data)
    upstream.faults.append(Fault(stall=4 * MIB))
    async with (
        running(tmp_path, {"docker.io": upstream.url}) as mirror,
        mirror.session.get(f"{mirror.url}{path(digest)}") as leaving,
    ):
        await leaving.content.readexactly(3 * MIB)
        leaving.close()
    async with running(tmp_path, {"docker.io": upstream.url}) as mirror:
        assert (await mirror.get(path(digest))).body == data
        await eventually(mirror, FILLS % "resumed", 1)
    asked = upstream.seen[-1].headers["Range"].removeprefix("bytes=").partition("-")[0]
    assert 3 * MIB <= int(asked) <= 4 * MIB


@pytest.mark.long
async def test_a_fill_that_nobody_wants_stops_and_keeps_what_it_has(mirror, upstream):
    data = random_bytes(8 * MIB)
    digest = upstream.add_blob(data)
    upstream.hold(2 * MIB)
    async with mirror.session.get(f"{mirror.url}{path(digest)}") as leaving:
        await leaving.content.readexactly(MIB)
        leaving.close()
    await eventually(mirror, "mirror_fills_in_progress", 0)
    kept = (await mirror.metrics())["mirror_cache_bytes"]
    assert MIB <= kept <= 2 * MIB
    upstream.release()
    assert (await mirror.get(path(digest))).body == data
    assert [seen.headers.get("Range") for seen in upstream.seen] == [None, f"bytes={kept:.0f}-"]


async def test_a_client_that_leaves_does_not_stop_the_others(mirror, upstream):
    data = random_bytes(8 * MIB)
    digest = upstream.add_blob(data)
    upstream.hold(MIB)
    leaver = asyncio.create_task(mirror.get(path(digest)))
    stayer = asyncio.create_task(mirror.get(path(digest)))
    await eventually(mirror, "mirror_clients_waiting", 2)
    leaver.cancel()
    await eventually(mirror, "mirror_clients_waiting", 1)
    upstream.release()
    assert (await stayer).body == data
    assert upstream.count("blob") == 1


@pytest.mark.long
@pytest.mark.slow
async def test_the_cache_never_outgrows_its_limit_and_the_hot_blob_never_misses(tmp_path, upstream):
    size = 10 * MIB
    hot = upstream.add_blob(random_bytes(size, seed=1000))
    cache = {"max_size": "90MiB"}
    directory = tmp_path / "cache"
    most = 0
    async with running(directory, {"docker.io": upstream.url}, cache=cache) as mirror:
        await mirror.get(path(hot))
        for seed in range(40):
            digest = upstream.add_blob(random_bytes(size, seed))
            await mirror.get(path(digest))
            del upstream.blobs[digest]
            assert (await mirror.get(path(hot))).headers["Cache-Status"] == "mirror; hit"
            most = max(most, held_bytes(directory))
        await eventually(mirror, "mirror_cache_objects", 8)
        figures = await mirror.metrics()
    print(f"the disk held at most {most / MIB:.0f} MiB")
    assert most <= 90 * MIB
    assert figures["mirror_evictions_total"] == 33
    assert figures["mirror_evicted_bytes_total"] == 33 * size
    assert figures["mirror_cache_bytes"] == 8 * size


async def test_a_blob_of_unknown_size_reaches_a_client_of_http_1_0(mirror, upstream):
    """Such as nginx, which asks in HTTP/1.0 by default; a broken body never ends cleanly."""
    whole, broken = random_bytes(MIB), random_bytes(MIB, 1)
    digest = upstream.add_blob(whole)
    upstream.faults.append(Fault(unknown_length=True))
    head, body = await _asked_by_http_1_0(mirror, path(digest))
    assert head.startswith(b"HTTP/1.0 200 ")
    assert b"chunked" not in head.lower()
    assert body == whole
    digest = upstream.add_blob(broken)
    upstream.faults.append(Fault(unknown_length=True, flip=5))
    with pytest.raises(ConnectionResetError):
        await _asked_by_http_1_0(mirror, path(digest))


async def _asked_by_http_1_0(mirror, target: str) -> tuple[bytes, bytes]:
    """Ask as a client that reads to the end of the connection; its head and body."""
    url = URL(mirror.url)
    async with limit():
        reader, writer = await asyncio.open_connection(url.host, url.port)
        try:
            writer.write(f"GET {target} HTTP/1.0\r\n\r\n".encode())
            head, _, body = (await reader.read()).partition(b"\r\n\r\n")
            return head, body
        finally:
            writer.close()
