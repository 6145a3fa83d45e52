"""Small bodies of an upstream: read as a whole however they arrive, or not at all in time."""

import asyncio
import gzip
import json
import zlib

import pytest
from aiohttp import web

from tests.fakes import FakeRegistry, Fault, image
from tests.fakes.content import OCI_INDEX, OCI_MANIFEST
from tests.running import Mirror, running
from tests.waiting import limit

pytestmark = pytest.mark.slow

REPO = "library/app"
APP = image(b"layer")
SUBJECT = "sha256:" + "1" * 64
TAGS = json.dumps({"name": REPO, "tags": ["1"]}).encode()
INDEX = json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}).encode()
MANIFEST_HEADERS = {"Content-Type": OCI_MANIFEST, "Docker-Content-Digest": APP.digest}
TOKEN = b'{"token": "let-me-in", "expires_in": 3600}'
#: The path that is asked for, the kind of the upstream's request, its body and headers.
BODIES = {
    "token": (f"/v2/{REPO}/manifests/1", "ping", TOKEN, {}),
    "manifest": (f"/v2/{REPO}/manifests/1", "manifest", APP.manifest, MANIFEST_HEADERS),
    "tags": (f"/v2/{REPO}/tags/list", "tags", TAGS, {}),
    "referrers": (f"/v2/{REPO}/referrers/{SUBJECT}", "referrers", INDEX, {}),
}
QUICK = {"connect_timeout": "5s", "first_byte_timeout": "5s", "idle_timeout": "300ms"}


def filled(upstream: FakeRegistry, kind: str) -> None:
    """Give it the image; for a token it wants one to be shown."""
    upstream.add_image(REPO, APP, "1")
    if kind == "token":
        challenge = {"WWW-Authenticate": f'Bearer realm="{upstream.url}/token",service="fake"'}
        upstream.guard = lambda request, _: (
            None
            if request.headers.get("Authorization") == "Bearer let-me-in"
            else web.Response(status=401, headers=challenge)
        )


def slow(kind: str, body: bytes, headers: dict[str, str]) -> Fault:
    """A body that takes 20 s and never stands still."""
    return Fault(
        kind=kind, method="GET", times=99, status=200, headers=headers,
        body=body + b" " * 400, trickle=0.05,
    )  # fmt: skip


async def until_some_arrived(mirror: Mirror, kind: str, asked: asyncio.Task[object]) -> None:
    """Wait until the mirror has the first segment, or has answered without the second."""
    sample = f'mirror_upstream_bytes_total{{kind="{kind}",upstream="docker.io"}}'
    async with limit():
        while not asked.done() and not (await mirror.metrics()).get(sample):
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("kind", BODIES)
async def test_a_body_in_two_segments_is_read_as_a_whole(mirror, upstream, kind):
    path, request, body, headers = BODIES[kind]
    filled(upstream, kind)
    gate = asyncio.Event()
    upstream.faults.append(
        Fault(kind=request, method="GET", status=200, body=body, headers=headers, gate=gate)
    )
    asked = asyncio.create_task(mirror.get(path))
    await until_some_arrived(mirror, kind, asked)
    gate.set()
    answer = await asked
    assert answer.status == 200
    assert answer.body == (APP.manifest if kind == "token" else body)


@pytest.mark.parametrize(("status", "told"), [(404, 404), (403, 403), (500, 502), (429, 429)])
async def test_an_error_is_told_without_its_body(mirror, upstream, status, told):
    body = b'{"errors": [{"code": "X", "message": "in two segments"}]}'
    fault = Fault(kind="", times=9, status=status, body=body, gate=asyncio.Event())
    upstream.faults.append(fault)
    for kind in ("manifest", "tags", "referrers"):
        async with asyncio.timeout(20):
            assert (await mirror.get(BODIES[kind][0])).status in {told, 429}


async def test_a_redirect_is_followed_without_its_body(mirror, upstream):
    digest = upstream.add_blob(b"content")
    location = {"Location": f"{upstream.url}/v2/x/blobs/{digest}"}
    upstream.faults.append(
        Fault(status=307, body=b"moved for now", headers=location, gate=asyncio.Event())
    )
    async with asyncio.timeout(20):
        assert (await mirror.get(f"/v2/{REPO}/blobs/{digest}")).body == b"content"


@pytest.mark.parametrize("kind", BODIES)
async def test_a_body_at_a_byte_at_a_time_is_a_time_out_for_all_who_joined(
    tmp_path, upstream, kind
):
    path, request, body, headers = BODIES[kind]
    filled(upstream, kind)
    fault = slow(request, body, headers)
    upstream.faults.append(fault)
    async with running(tmp_path, {"docker.io": upstream.url}, fetch=QUICK) as mirror:
        answers = await asyncio.gather(*(mirror.get(path) for _ in range(5)))
        assert {answer.status for answer in answers} == {504}
        assert b"in time" in answers[0].body
        assert fault.times > 90, "nobody paid for it twice"
        upstream.faults[:] = [Fault(kind=request, times=99, status=200, body=body, headers=headers)]
        async with limit():  # a probe finds out that it answers
            while (await mirror.get(path)).status != 200:
                await asyncio.sleep(0.02)


async def test_what_is_known_of_a_tag_is_served_while_upstream_is_too_slow(tmp_path, upstream):
    upstream.add_image(REPO, APP, "1")
    path, _, body, headers = BODIES["manifest"]
    sections = {"tags": {"max_age": "0s"}, "fetch": QUICK}
    async with running(tmp_path, {"docker.io": upstream.url}, **sections) as mirror:
        assert (await mirror.get(path)).status == 200
        upstream.faults += [
            Fault(kind="manifest", method="HEAD", times=99, status=405),  # it only knows GET
            slow("manifest", body, headers),
        ]
        answer = await mirror.get(path)
        assert (answer.status, answer.body) == (200, APP.manifest)
        assert answer.headers["Cache-Status"].startswith("mirror; fwd=stale")


@pytest.mark.parametrize("kind", BODIES)
async def test_the_next_address_is_asked_for_what_one_sends_too_slowly(tmp_path, upstream, kind):
    path, request, body, headers = BODIES[kind]
    listing = kind in {"tags", "referrers"}  # of these the registry itself is asked first
    async with FakeRegistry() as nearby:
        first, second = (upstream, nearby) if listing else (nearby, upstream)
        filled(second, "")
        filled(first, kind)
        first.faults.append(slow(request, body, headers))
        table = {"url": upstream.url, "mirrors": [nearby.url]}
        async with running(tmp_path, {"docker.io": table}, fetch=QUICK) as mirror:
            assert (await mirror.get(path)).status == 200
        assert first.seen


# Content-Encoding, although identity was asked for.


def compressing(upstream: FakeRegistry, pack, field: str = "gzip"):
    """Answer each request for a manifest or a listing with a compressed body."""

    def guard(request: web.BaseRequest, path: str) -> web.Response | None:
        name = path.rpartition("/")[2]
        digest = upstream.tags.get((REPO, name), name)
        if path.endswith("/tags/list"):
            body, fields = b'{"name": "library/app", "tags": ["1"]}', {}
        elif "/manifests/" in path:
            body, media_type = upstream.manifests[REPO, digest]
            fields = {"Docker-Content-Digest": digest, "Content-Type": media_type}
        else:
            return None
        return web.Response(body=pack(body), headers=fields | {"Content-Encoding": field})

    upstream.guard = guard


@pytest.mark.parametrize(
    ("pack", "field"),
    [
        (gzip.compress, "gzip"),
        (gzip.compress, "x-gzip"),
        (zlib.compress, "deflate"),
        (bytes, "gzip"),
    ],
)
async def test_a_compressed_manifest_or_listing_is_uncompressed(mirror, upstream, pack, field):
    app = image(b"layer")
    upstream.add_image(REPO, app, "1")
    compressing(upstream, pack, field)
    for path in (f"/v2/{REPO}/manifests/1", f"/v2/{REPO}/manifests/{app.digest}"):
        answer = await mirror.get(path)
        assert answer.body == app.manifest
        assert "Content-Encoding" not in answer.headers
    head = await mirror.get(f"/v2/{REPO}/manifests/1", "HEAD")
    assert head.headers["Content-Length"] == str(len(app.manifest))
    assert json.loads((await mirror.get(f"/v2/{REPO}/tags/list")).body)["tags"] == ["1"]


async def test_a_manifest_that_is_enormous_once_uncompressed_is_502(mirror, upstream):
    body = b'{"schemaVersion": 2, "x": "' + b"x" * (5 << 20) + b'"}'
    upstream.add_manifest(REPO, body, "application/vnd.oci.image.manifest.v1+json", "1")
    compressing(upstream, gzip.compress)
    answer = await mirror.get(f"/v2/{REPO}/manifests/1")
    assert (answer.status, b"over 4194304 bytes" in answer.body) == (502, True)
