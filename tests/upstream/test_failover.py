"""A mirror of an upstream that answers 200 with the wrong bytes: the next address is asked."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp
import pytest
from aiohttp import web

from tests.fakes import FakeRegistry, Fault, image, random_bytes
from tests.fakes.content import OCI_MANIFEST
from tests.running import Mirror, eventually, running

pytestmark = [pytest.mark.slow]

REPO = "library/app"
HTML = b"<html><body>Please log in to the network</body></html>"
LARGE = random_bytes(3 << 20)
APP = image(LARGE, random_bytes(70_000, 1), random_bytes(500, 2))
OTHER = image(b"another image")
NOWHERE = "sha256:" + "0" * 64

TAG = f"/v2/{REPO}/manifests/1"
DIGEST = f"/v2/{REPO}/manifests/{APP.digest}"
BLOBS = [f"/v2/{REPO}/blobs/{digest}" for digest in APP.digests]


@dataclass(frozen=True)
class Pair:
    """A mirror in front of an upstream, and a mirror of that upstream which is asked first."""

    mirror: Mirror
    nearby: FakeRegistry
    upstream: FakeRegistry

    async def attempts(self, path: str, limit: int = 2) -> list[bytes | None]:
        """Bodies, up to the first that comes whole; None for what was broken off or refused."""
        bodies: list[bytes | None] = []
        while len(bodies) < limit and (not bodies or bodies[-1] is None):
            try:
                answer = await self.mirror.get(path)
                bodies.append(answer.body if answer.status == 200 else None)
            except aiohttp.ClientError:
                bodies.append(None)
        return bodies


@asynccontextmanager
async def addresses(directory, upstream: FakeRegistry, **more) -> AsyncIterator[Pair]:
    upstream.add_image(REPO, APP, "1")
    async with FakeRegistry() as nearby:
        nearby.add_image(REPO, APP, "1")
        table = {"url": upstream.url, "mirrors": [nearby.url]}
        async with running(directory, {"docker.io": table}, **more) as mirror:
            yield Pair(mirror, nearby, upstream)


@pytest.fixture
async def pair(tmp_path, upstream: FakeRegistry) -> AsyncIterator[Pair]:
    async with addresses(tmp_path, upstream) as pair:
        yield pair


def answering(
    body: bytes, media_type: str, **fields: str
) -> Callable[[web.BaseRequest, str], web.Response]:
    headers = {name.replace("_", "-"): value for name, value in fields.items()}
    return lambda request, path: web.Response(
        body=body, headers={"Content-Type": media_type, **headers}
    )


GARBAGE = {
    "a web page": answering(HTML, "text/html; charset=utf-8"),
    "a web page called bytes": answering(HTML, "application/octet-stream"),
    "a web page called a manifest": answering(HTML, OCI_MANIFEST),
    "a web page with a digest": answering(HTML, OCI_MANIFEST, Docker_Content_Digest=APP.digest),
    "a digest that is nowhere": answering(HTML, OCI_MANIFEST, Docker_Content_Digest=NOWHERE),
    "nothing": answering(b"", "application/json"),
    "an empty object": answering(b"{}", "application/json"),
    "an error": answering(b'{"errors": [{"code": "UNKNOWN"}]}', "application/json"),
    "cut JSON": answering(APP.manifest[:-9], OCI_MANIFEST),
    "another manifest": answering(OTHER.manifest, OCI_MANIFEST, Docker_Content_Digest=APP.digest),
    "five megabytes": answering(b"{" + b" " * (5 << 20), OCI_MANIFEST),
}


@pytest.mark.parametrize("garbage", GARBAGE)
async def test_an_image_is_pulled_past_an_address_that_answers_garbage(pair, garbage):
    pair.nearby.guard = GARBAGE[garbage]
    for path in (TAG, DIGEST):
        answer = await pair.mirror.get(path)
        assert (answer.status, answer.body) == (200, APP.manifest)
    for path, blob in zip(BLOBS, APP.blobs, strict=True):
        assert await pair.attempts(path) in ([blob], [None, blob])
    assert pair.nearby.seen, "it was asked first"
    await eventually(pair.mirror, "mirror_cache_objects", 1 + len(BLOBS))  # and nothing else


@pytest.mark.parametrize("size", [30, 60_000])
@pytest.mark.parametrize("path", BLOBS)
async def test_a_small_page_instead_of_a_blob_costs_no_client_its_pull(pair, path, size):
    pair.nearby.guard = answering(b"x" * size, "application/octet-stream")
    blob = APP.blobs[BLOBS.index(path)]
    assert await pair.attempts(path) == [blob]
    assert len(pair.nearby.seen) == 1


@pytest.mark.parametrize("garbage", ["a web page", "nothing", "an empty object", "an error"])
async def test_a_listing_comes_from_the_next_address_too(pair, garbage):
    pair.nearby.guard = GARBAGE[garbage]
    tags = await pair.mirror.get(f"/v2/{REPO}/tags/list")
    assert json.loads(tags.body)["tags"] == ["1"]
    referrers = await pair.mirror.get(f"/v2/{REPO}/referrers/{APP.digest}")
    assert json.loads(referrers.body)["manifests"] == []


async def test_a_web_page_does_not_tell_the_size_of_a_blob(pair):
    pair.nearby.guard = GARBAGE["a web page"]
    head = await pair.mirror.get(BLOBS[1], "HEAD")
    assert head.headers["Content-Length"] == str(len(LARGE))


async def test_after_a_flipped_byte_the_next_attempt_goes_to_the_next_address(pair):
    """What the first client has already cannot be taken back."""
    pair.nearby.faults.append(Fault(kind="blob", times=99, flip=2 << 20))
    assert await pair.attempts(BLOBS[1]) == [None, LARGE]
    assert (pair.nearby.count("blob"), pair.upstream.count("blob")) == (1, 1)


async def test_a_flipped_byte_that_nobody_has_seen_costs_nobody_anything(pair):
    pair.nearby.faults += [
        Fault(kind="blob", flip=100),
        Fault(kind="manifest", method="GET", times=9, flip=30),
    ]
    assert await pair.attempts(BLOBS[3]) == [APP.blobs[3]]
    assert await pair.attempts(TAG) == [APP.manifest]
    assert await pair.attempts(DIGEST) == [APP.manifest]


@pytest.mark.parametrize("change", [-1, +1, -(2 << 20), 1 << 20])
async def test_a_wrong_length_is_answered_by_the_next_address_at_the_next_attempt(pair, change):
    wrong = (LARGE + LARGE)[: len(LARGE) + change]
    pair.nearby.guard = answering(wrong, "application/octet-stream")
    assert await pair.attempts(BLOBS[1]) == [None, LARGE]


async def test_an_address_that_always_breaks_off_does_not_stop_the_fill(pair):
    pair.nearby.faults.append(Fault(kind="blob", times=99, cut=0))
    assert await pair.attempts(BLOBS[1]) == [LARGE]
    assert pair.nearby.count("blob") == 1


@pytest.mark.parametrize(
    "field", ["bytes x", "bytes 0-9/10", "bytes {start}-99999999/100000000", "bytes {start}-5/7"]
)
async def test_an_absurd_content_range_is_gone_on_from_at_the_next_address(pair, field):
    def guard(request: web.BaseRequest, path: str) -> web.Response | None:
        wanted = request.headers.get("Range")
        if wanted is None:
            return None
        start = wanted.removeprefix("bytes=").partition("-")[0]
        headers = {"Content-Range": field.format(start=start)}
        return web.Response(status=206, body=b"x" * 10, headers=headers)

    pair.nearby.guard = guard
    pair.nearby.faults.append(Fault(kind="blob", cut=2 << 20))
    assert await pair.attempts(BLOBS[1]) == [LARGE]


@pytest.mark.long
async def test_what_an_earlier_fill_left_is_thrown_away_where_it_is_wrong(tmp_path, upstream):
    """The earlier one broke off for good after wrong bytes that no client had seen."""
    broken = Fault(kind="blob", flip=100, cut=30_000)
    async with addresses(tmp_path, upstream) as pair:
        pair.nearby.faults += [broken, Fault(kind="blob", times=99, refuse=True)]
        upstream.faults.append(Fault(kind="blob", times=99, refuse=True))
        assert (await pair.attempts(BLOBS[2]))[0] is None
    upstream.faults.clear()
    async with addresses(tmp_path, upstream) as pair:
        assert (await pair.attempts(BLOBS[2]))[-1] == APP.blobs[2]


async def test_an_address_that_fails_repeatedly_is_asked_last(pair):
    blobs = [random_bytes(1000, seed) for seed in range(10, 16)]
    digests = [pair.upstream.add_blob(blob) for blob in blobs]
    pair.nearby.guard = GARBAGE["a web page called bytes"]
    for digest, blob in zip(digests, blobs, strict=True):
        assert await pair.attempts(f"/v2/{REPO}/blobs/{digest}") == [blob]
    assert pair.nearby.count("blob") == 3
    # It is mended, and still better than none.
    pair.nearby.guard = None
    await pair.upstream.stop()
    assert await pair.attempts(TAG) == [APP.manifest]
    assert await pair.attempts(BLOBS[1]) == [LARGE]
    await pair.upstream.start()


async def test_many_clients_at_once_get_past_it_too(pair):
    pair.nearby.guard = GARBAGE["a web page called bytes"]
    paths = [TAG, DIGEST, *BLOBS] * 4
    bodies = [APP.manifest, APP.manifest, *APP.blobs] * 4
    found = await asyncio.gather(*(pair.attempts(path) for path in paths))
    assert found == [[body] for body in bodies]


async def test_where_every_address_is_wrong_the_registry_has_the_last_word(pair):
    pair.nearby.guard = GARBAGE["a web page"]
    pair.upstream.guard = lambda *_: web.Response(status=404)
    assert (await pair.mirror.get(TAG)).status == 404
    pair.upstream.guard = GARBAGE["a web page called bytes"]
    assert (await pair.mirror.get(DIGEST)).status == 502
    assert await pair.attempts(BLOBS[3]) == [None, None]
