"""Requests that no client should send: each gets a 4xx with the spec's JSON and goes no further."""

import asyncio
import json
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fakes import image
from tests.waiting import limit

pytestmark = pytest.mark.slow

DIGEST = "sha256:" + "a" * 64

PATHS = [
    ("/v2/Upper/manifests/1", 400, "NAME_INVALID"),
    ("/v2/a//b/manifests/1", 400, "NAME_INVALID"),
    ("/v2/../etc/manifests/1", 400, "NAME_INVALID"),
    ("/v2/%2e%2e/etc/manifests/1", 400, "NAME_INVALID"),
    ("/v2/a%2Fb/manifests/1", 400, "NAME_INVALID"),
    ("/v2/a/b%00/manifests/1", 400, "NAME_INVALID"),
    ("/v2/" + "a" * 300 + "/manifests/1", 400, "NAME_INVALID"),
    ("/v2/app/manifests/-tag", 404, "MANIFEST_UNKNOWN"),
    ("/v2/app/manifests/" + "t" * 129, 404, "MANIFEST_UNKNOWN"),
    ("/v2/app/manifests/sha256:abc", 400, "DIGEST_INVALID"),
    ("/v2/app/blobs/sha256:" + "A" * 64, 400, "DIGEST_INVALID"),
    ("/v2/app/blobs/md5:" + "a" * 32, 400, "DIGEST_INVALID"),
    ("/v2/app/blobs/latest", 400, "DIGEST_INVALID"),
    ("/v2/_catalog", 404, "UNSUPPORTED"),
    ("/v2/app", 404, None),
    ("/nothing", 404, None),
]


async def ask_raw(url: str, request: bytes) -> tuple[int, dict[str, str], bytes]:
    """Send bytes as they are; the status, header fields and body that come back."""
    host, _, port = url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(request)
    async with limit():
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        status, *fields = head.split("\r\n")
        pairs = (field.split(": ", 1) for field in fields if field)
        headers = {name.lower(): value for name, value in pairs}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
    writer.close()
    return int(status.split()[1]), headers, body


def get(target: str, *fields: str, method: str = "GET") -> bytes:
    lines = [f"{method} {target} HTTP/1.1", "Host: mirror", *fields, "", ""]
    return "\r\n".join(lines).encode("latin-1")


@pytest.mark.parametrize(("target", "status", "code"), PATHS)
async def test_a_malformed_path_is_refused_at_the_door(mirror, upstream, target, status, code):
    answered, headers, body = await ask_raw(mirror.url, get(target))
    error = json.loads(body)["errors"][0]
    assert answered == status
    assert code in {None, error["code"]}
    assert error["message"]
    assert headers["content-type"].startswith("application/json")
    assert upstream.seen == []


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
@pytest.mark.parametrize("target", ["/v2/app/blobs/uploads/", "/v2/app/manifests/1", "/v2/"])
async def test_a_push_is_405_and_says_where_to_push(mirror, upstream, method, target):
    request = get(target, "Content-Length: 0", method=method)
    status, headers, body = await ask_raw(mirror.url, request)
    assert (status, headers["allow"]) == (405, "GET, HEAD")
    assert json.loads(body)["errors"][0]["code"] == "UNSUPPORTED"
    assert upstream.seen == []


@pytest.mark.parametrize(
    "request_bytes",
    [
        get("/v2/", "X-Big: " + "x" * 9000),
        get("/" + "a" * 9000),
        b"nonsense\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 hello TLS\r\n\r\n",
        get("/v2/", "Content-Length: x"),
        get("/v2/", "Content-Length: 1", "Transfer-Encoding: chunked"),
    ],
    ids=["8 KiB header", "8 KiB path", "no HTTP", "TLS", "no length", "two lengths"],
)
async def test_what_is_no_http_gets_the_specs_json_too(mirror, upstream, request_bytes):
    status, _, body = await ask_raw(mirror.url, request_bytes)
    assert 400 <= status < 500
    assert json.loads(body)["errors"][0]["message"]
    assert upstream.seen == []


async def test_a_field_of_bytes_that_are_no_text_spoils_nothing_for_others(mirror):
    """One such text in the statistics ended the page, the statistics and an orderly stop."""
    request = get("/v2/library/app/manifests/1", "OCI-Namespace: \xff\xfe", "User-Agent: \xff")
    status, _, body = await ask_raw(mirror.url, request)
    assert (status, json.loads(body)["errors"][0]["code"]) == (403, "DENIED")
    assert json.loads(body)["errors"][0]["message"].encode(), "half of a surrogate pair is no JSON"
    stats = await mirror.get("/api/v1/stats")
    assert stats.status == 200
    pulls = await mirror.get("/api/v1/pulls")
    assert b"not configured for" in pulls.body
    assert (await mirror.get("/", Accept="text/html")).status == 200


@pytest.mark.parametrize("wanted", ["bytes=", "bytes=a-b", "bytes=5", "bytes=-", "bytes=99-"])
async def test_a_malformed_range_is_416(mirror, upstream, wanted):
    digest = upstream.add_blob(b"0123456789")
    answer = await mirror.get(f"/v2/app/blobs/{digest}", Range=wanted)
    assert answer.status == 416
    assert json.loads(answer.body)["errors"][0]["code"] == "RANGE_INVALID"


_SEGMENTS = st.text(
    st.sampled_from("abz019._-/%:@~+\\AZ") | st.characters(min_codepoint=33, max_codepoint=255),
    max_size=40,
)
_TARGETS = st.builds(
    "/{}/{}/{}".format,
    st.sampled_from(["v2", "mcr.microsoft.com/v2"]) | _SEGMENTS,
    _SEGMENTS,
    st.sampled_from(["manifests/1", "blobs/" + DIGEST, "tags/list", "v2/"]) | _SEGMENTS,
)


def well_formed(target: str) -> bool:
    """What may pass the door, said in another way than the product says it."""
    path = re.sub("%3[aA]", ":", target.partition("?")[0])
    return path == "/" or bool(  # the page for people
        re.fullmatch(
            r"(/[A-Za-z0-9][A-Za-z0-9.-]*(:[0-9]+)?)?/v2/([a-z0-9][A-Za-z0-9._/:-]*)?", path
        )
    )


@pytest.mark.long
@pytest.mark.slow
@settings(
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(target=_TARGETS)
async def test_whatever_is_malformed_is_refused_and_leaves_no_trace(
    mirror, upstream, tmp_path, target
):
    upstream.seen.clear()  # one upstream for all examples
    status, _, body = await ask_raw(mirror.url, get(target))
    if well_formed(target):
        return  # may be asked of upstream, which has nothing here
    assert 400 <= status < 500
    assert json.loads(body)["errors"][0]["code"]
    assert upstream.seen == []
    assert list((tmp_path / "cache" / "partial").iterdir()) == []
    assert (await mirror.metrics())["mirror_cache_objects"] == 0


async def test_a_client_that_takes_the_mirror_for_its_http_proxy_gets_no_other_registrys_image(
    mirror, upstream
):
    """It means registry.lan:5000/app, which the default upstream may have under the same name."""
    upstream.add_image("library/app", image(b"layer"), "1")
    for host in ("registry.lan:5000", mirror.url.removeprefix("http://")):
        target = f"http://{host}/v2/app/manifests/1"
        status, _, body = await ask_raw(mirror.url, get(target))
        assert (status, b"this port is no proxy" in body) == (421, True)
    assert upstream.seen == []
