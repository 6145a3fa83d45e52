"""HEAD is not GET: what upstream answers to one says little about the other."""

import pytest
from aiohttp import web

from tests.fakes import Fault, image, random_bytes
from tests.running import running

pytestmark = pytest.mark.slow

REPO = "library/app"
TAG = f"/v2/{REPO}/manifests/1"
APP = image(random_bytes(10_000))
BLOB = f"/v2/{REPO}/blobs/{APP.digests[0]}"
REFUSALS = [400, 401, 403, 404, 405, 410, 418, 500, 501, 503]


@pytest.fixture(autouse=True)
def content(upstream):
    upstream.add_image(REPO, APP, "1")


@pytest.mark.parametrize("status", REFUSALS)
@pytest.mark.parametrize("asked", ["GET", "HEAD"])
async def test_a_tag_whose_head_is_refused_is_asked_for_by_get(mirror, upstream, status, asked):
    upstream.faults.append(Fault(kind="manifest", method="HEAD", times=9, status=status))
    answer = await mirror.get(TAG, asked)
    assert (answer.status, answer.headers["Docker-Content-Digest"]) == (200, APP.digest)
    assert answer.body == (APP.manifest if asked == "GET" else b"")
    assert (upstream.count("manifest", "HEAD"), upstream.count("manifest", "GET")) == (1, 1)


@pytest.mark.parametrize("status", REFUSALS)
async def test_the_head_of_a_blob_is_no_negative_answer_for_its_get(mirror, upstream, status):
    """public.ecr.aws answers 401 to HEAD of blobs."""
    upstream.faults.append(Fault(kind="blob", method="HEAD", times=9, status=status))
    head = await mirror.get(BLOB, "HEAD")
    size = len(upstream.blobs[APP.digests[0]])
    assert (head.status, head.headers["Content-Length"]) == (200, str(size))
    assert sum(upstream.sent.values()) <= 1
    assert (await mirror.get(BLOB)).status == 200


@pytest.mark.parametrize("status", [206, 400, 416])
async def test_the_size_of_a_blob_is_told_by_a_registry_with_neither_head_nor_range(
    mirror, upstream, status
):
    def guard(request: web.BaseRequest, path: str) -> web.Response | None:
        if "/blobs/" not in path or (request.method == "GET" and "Range" not in request.headers):
            return None
        return web.Response(status=401 if request.method == "HEAD" else status, body=b"x")

    upstream.guard = guard
    size = len(upstream.blobs[APP.digests[0]])
    head = await mirror.get(BLOB, "HEAD")
    assert (head.status, head.headers["Content-Length"]) == (200, str(size))
    assert (await mirror.get(BLOB)).status == 200


async def test_the_head_of_a_missing_blob_or_tag_is_404(mirror, upstream):
    for path in (BLOB.replace(APP.digests[0], "sha256:" + "0" * 64), TAG + "2"):
        for method in ("HEAD", "GET"):
            assert (await mirror.get(path, method)).status == 404


async def test_a_head_that_upstream_limits_is_not_asked_by_get_instead(mirror, upstream):
    upstream.faults.append(Fault(kind="", times=9, method="HEAD", status=429))
    for path in (TAG, BLOB):
        assert (await mirror.get(path, "HEAD")).status == 429
    assert len(upstream.seen) == 2


async def test_head_does_not_announce_what_get_cannot_serve(mirror, upstream):
    wrong = {"Docker-Content-Digest": "sha256:" + "1" * 64}

    def guard(request: web.BaseRequest, path: str) -> web.Response | None:
        usual = {"Content-Type": APP.media_type, **wrong}
        return web.Response(body=APP.manifest, headers=usual) if "/manifests/" in path else None

    upstream.guard = guard
    for method in ("HEAD", "GET"):
        assert (await mirror.get(TAG, method)).status == 502


async def test_a_blob_without_bytes_is_no_blob(mirror, upstream):
    """A broken proxy on the way answers 200 and nothing: no client may take that for a layer."""
    usual = upstream.guard
    upstream.guard = lambda request, path: web.Response() if "/blobs/" in path else None
    head = await mirror.get(BLOB, "HEAD")
    assert (head.status, head.headers.get("Content-Length")) == (200, None)
    assert (await mirror.get(BLOB)).status == 502
    upstream.guard = usual
    assert (await mirror.get(BLOB)).status == 200
    empty = upstream.add_blob(b"")
    assert (await mirror.get(f"/v2/{REPO}/blobs/{empty}")).status == 200


async def test_203_of_a_proxy_on_the_way_is_as_good_as_200(mirror, upstream):
    def guard(request: web.BaseRequest, path: str) -> web.Response | None:
        contents = {"manifests": APP.manifest, "blobs": upstream.blobs[APP.digests[0]]}
        body = contents.get(path.split("/")[-2], b'{"name": "library/app", "tags": ["1"]}')
        return web.Response(status=203, body=body, headers={"Content-Type": "application/json"})

    upstream.guard = guard
    for path in (TAG, BLOB, f"/v2/{REPO}/tags/list"):
        assert (await mirror.get(path)).status == 200


@pytest.mark.parametrize("coding", ["", "aws-chunked", "utf-8", "identity"])
async def test_a_coding_that_changes_no_byte_leaves_the_length(mirror, upstream, coding):
    """Storage of the S3 kind keeps the word aws-chunked of an upload."""
    upstream.faults.append(Fault(times=9, headers={"Content-Encoding": coding}))
    size = str(len(upstream.blobs[APP.digests[0]]))
    for method in ("HEAD", "GET"):
        answer = await mirror.get(BLOB, method)
        assert (answer.status, answer.headers.get("Content-Length")) == (200, size)
    assert upstream.count("blob") == 2


@pytest.mark.parametrize(
    "fields",
    [
        {"Content-Length": "0"},
        {"Content-Length": "77", "Content-Encoding": "gzip"},
        {"Content-Type": "application/json"},
        {"Docker-Content-Digest": None},
    ],
)
@pytest.mark.parametrize("stored", [True, False])
async def test_a_length_that_is_not_that_of_the_content_is_not_believed(
    tmp_path, upstream, fields, stored
):
    def guard(request: web.BaseRequest, path: str) -> web.Response | None:
        if request.method != "HEAD" or request.path.startswith("/v2/library/none"):
            return None
        manifest = "/manifests/" in path
        digest = APP.digest if manifest else APP.digests[0]
        usual = {
            "Docker-Content-Digest": digest,
            "Content-Type": "application/vnd.oci.image.manifest.v1+json",
            "Content-Length": str(len(APP.manifest if manifest else upstream.blobs[digest])),
        }
        headers = {name: value for name, value in (usual | fields).items() if value is not None}
        return web.Response(headers=headers)

    tags = {"max_age": "0s"}
    async with running(tmp_path, {"docker.io": upstream.url}, tags=tags) as mirror:
        if stored:
            assert (await mirror.get(f"/v2/{REPO}/manifests/{APP.digest}")).status == 200
            asked = upstream.count("manifest", "GET")
        upstream.guard = guard
        for path, size in ((TAG, len(APP.manifest)), (BLOB, len(upstream.blobs[APP.digests[0]]))):
            head = await mirror.get(path, "HEAD")
            assert (head.status, head.headers["Content-Length"]) == (200, str(size))
        if stored and fields.get("Docker-Content-Digest", "") is not None:
            assert upstream.count("manifest", "GET") == asked, "its digest is stored"
        assert (await mirror.get(TAG)).body == APP.manifest
