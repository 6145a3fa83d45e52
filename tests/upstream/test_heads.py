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


async def test_the_head_of_a_missing_blob_or_tag_is_404(mirror, upstream):
    for path in (BLOB.replace(APP.digests[0], "sha256:" + "0" * 64), TAG + "2"):
        for method in ("HEAD", "GET"):
            assert (await mirror.get(path, method)).status == 404


async def test_a_head_that_upstream_limits_is_not_asked_by_get_instead(mirror, upstream):
    upstream.faults.append(Fault(kind="", times=9, method="HEAD", status=429))
    for path in (TAG, BLOB):
        assert (await mirror.get(path, "HEAD")).status == 429
    assert len(upstream.seen) == 2


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
