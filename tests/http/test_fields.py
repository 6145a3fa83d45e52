"""Fields of all answers: nothing that came from upstream is a page on the mirror's own origin."""

import asyncio
import json
import time

import pytest

from mirror import __version__
from mirror.metrics.metrics import Metrics
from mirror.server.store import opened_store
from mirror.store.interface import Page
from tests.fakes import FakeRegistry, Fault, image
from tests.fakes.content import OCI_INDEX
from tests.running import configured, running
from tests.waiting import limit

pytestmark = [pytest.mark.slow]

REPO = "library/app"
APP = image(b"<script>alert(1)</script>")
SCRIPT = b'{"tags": ["<script>alert(1)</script>"], "manifests": []}'
HTML = {"Content-Type": "text/html", "Server": "upstream"}
TAGS = f"/v2/{REPO}/tags/list"
REFERRERS = f"/v2/{REPO}/referrers/{APP.digest}"
BLOB = f"/v2/{REPO}/blobs/{APP.digests[1]}"


@pytest.fixture
def app(upstream: FakeRegistry):
    upstream.add_image(REPO, APP, "latest")


def check(headers, where: str) -> None:
    assert headers["Server"] == "mirror", where
    assert headers["X-Content-Type-Options"] == "nosniff", where
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy, where
    assert "frame-ancestors 'none'" in policy, where


async def test_every_answer_says_mirror_and_is_no_page_for_a_browser(mirror, upstream, app):
    asked = [
        (200, "GET", "/v2/", {}),
        (200, "GET", f"/v2/{REPO}/manifests/latest", {}),
        (200, "GET", f"/v2/{REPO}/manifests/{APP.digest}", {}),
        (200, "HEAD", f"/v2/{REPO}/manifests/latest", {}),
        (304, "GET", f"/v2/{REPO}/manifests/latest", {"If_None_Match": f'"{APP.digest}"'}),
        (200, "GET", BLOB, {}),
        (200, "HEAD", BLOB, {}),
        (206, "GET", BLOB, {"Range": "bytes=1-2"}),
        (206, "GET", BLOB, {"Range": "bytes=1-2,5-6"}),
        (304, "GET", BLOB, {"If_None_Match": f'"{APP.digests[1]}"'}),
        (200, "GET", TAGS, {}),
        (200, "GET", REFERRERS, {}),
        (404, "GET", f"/v2/{REPO}/manifests/missing", {}),
        (404, "GET", f"/v2/{REPO}/blobs/{APP.digest}", {}),
        (403, "GET", "/v2/other.example/app/manifests/1", {}),
        (405, "PUT", f"/v2/{REPO}/manifests/latest", {}),
        (400, "GET", f"{TAGS}?n=x", {}),
        (200, "GET", "/", {}),
        (200, "GET", "/", {"Accept": "text/html"}),
        (200, "GET", "/live", {}),
        (200, "GET", "/clients", {}),
        (200, "GET", "/status.css", {}),
        (200, "GET", "/healthz", {}),
        (200, "GET", "/readyz", {}),
        (200, "GET", "/metrics", {}),
        (404, "GET", "/nothing", {}),
    ]
    for _ in range(2):  # the second time some are repeated as they were
        for status, method, path, headers in asked:
            answer = await mirror.get(path, method, **headers)
            assert answer.status == status, (method, path)
            check(answer.headers, f"{method} {path} {headers}")


@pytest.mark.parametrize(
    "request_", [b"nonsense\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET /v2/ HTTP/1.1\r\nA\r\n\r\n"]
)
async def test_so_does_the_answer_to_what_is_no_request(mirror, request_):
    host, _, port = mirror.url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(request_)
    async with limit():
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
    writer.close()
    assert head.split()[1] == "400"
    lines = (line.partition(": ") for line in head.splitlines()[1:])
    check({name: value for name, _, value in lines}, head)


@pytest.mark.parametrize(("path", "kind"), [(TAGS, "tags"), (REFERRERS, "referrers")])
async def test_a_listing_has_the_mirrors_own_media_type(mirror, upstream, app, path, kind):
    upstream.faults.append(Fault(kind=kind, status=200, body=SCRIPT, headers=HTML))
    own = OCI_INDEX if kind == "referrers" else "application/json"
    for _ in range(2):
        answer = await mirror.get(path)
        assert (answer.status, answer.body) == (200, SCRIPT)
        assert answer.headers["Content-Type"] == own
        check(answer.headers, path)
    assert upstream.count(kind) == 1


async def test_so_has_one_that_a_former_version_kept(tmp_path, upstream):
    config = configured(tmp_path, {"docker.io": upstream.url})
    fields = {"media_type": "text/html", "next_query": "", "filters_applied": ""}
    async with opened_store(config, Metrics(__version__)) as store:
        page = Page(SCRIPT, fields, time.time())
        await store.listings.put(f"tags docker.io {REPO} ", page)
    upstream.faults.append(Fault(kind="tags", times=9, status=503))
    async with running(tmp_path, {"docker.io": upstream.url}) as mirror:
        answer = await mirror.get(TAGS)
    assert (answer.status, answer.body) == (200, SCRIPT)
    assert answer.headers["Cache-Status"].startswith("mirror; fwd=stale")
    assert answer.headers["Content-Type"] == "application/json"


async def test_blobs_and_manifests_have_no_media_type_but_their_own(mirror, upstream, app):
    upstream.faults += [
        Fault(kind="blob", headers=HTML),
        Fault(kind="manifest", times=2, headers=HTML),
    ]
    blob = await mirror.get(BLOB)
    assert blob.body == APP.blobs[1]
    assert blob.headers["Content-Type"] == "application/octet-stream"
    manifest = await mirror.get(f"/v2/{REPO}/manifests/latest")
    assert manifest.headers["Content-Type"] == json.loads(APP.manifest)["mediaType"]
