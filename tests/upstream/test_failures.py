"""An upstream that cannot be reached, is too slow, or answers nonsense: one plain answer each."""

import asyncio
import json
import ssl

import aiohttp
import pytest
import trustme
from aiohttp import web

from mirror.upstream import addresses, sessions
from tests.fakes import FakeRegistry, Fault, image, random_bytes
from tests.peers.process import free_port
from tests.running import Mirror, eventually, running
from tests.waiting import limit

pytestmark = [pytest.mark.slow]


REPO = "library/app"
BLOB = "/v2/library/app/blobs/"
NOWHERE = "sha256:" + "0" * 64
#: Short for the answers that do not come, long for those that a busy machine gives.
QUICK = {"connect_timeout": "5s", "first_byte_timeout": "5s", "idle_timeout": "5s"}


async def told(mirror: Mirror, path: str) -> tuple[int, str]:
    """Status and message; what is asked by tag and by digest must be told alike."""
    answer = await mirror.get(path)
    return answer.status, json.loads(answer.body)["errors"][0]["message"]


@pytest.mark.parametrize("path", [f"/v2/{REPO}/manifests/1", BLOB + NOWHERE])
async def test_a_refused_connection_is_502(tmp_path, path):
    url = f"http://127.0.0.1:{free_port()}"
    async with running(tmp_path, {"docker.io": url}) as mirror:
        assert await told(mirror, path) == (
            502,
            f"docker.io: cannot connect to {url} (connection refused)",
        )
        assert (await mirror.metrics())['mirror_upstream_up{upstream="docker.io"}'] == 0


async def test_a_name_that_does_not_resolve_is_502(tmp_path):
    async with running(tmp_path, {"docker.io": "http://registry.invalid"}) as mirror:
        status, message = await told(mirror, BLOB + NOWHERE)
    assert status == 502
    assert "registry.invalid" in message


async def test_plain_http_where_tls_was_meant_is_502(tmp_path, upstream):
    url = upstream.url.replace("http:", "https:")
    async with running(tmp_path, {"docker.io": url}) as mirror:
        status, message = await told(mirror, BLOB + NOWHERE)
    assert status == 502
    assert url in message


async def test_a_certificate_that_is_not_trusted_is_502_until_its_ca_is(tmp_path):
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    ca_file = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(ca_file))
    async with FakeRegistry(tls=context) as upstream:
        digest = upstream.add_blob(b"content")
        async with running(tmp_path / "1", {"docker.io": upstream.url}) as mirror:
            status, message = await told(mirror, BLOB + digest)
        assert (status, "is not trusted (ca_file adds a CA)" in message) == (502, True)
        table = {"url": upstream.url, "ca_file": str(ca_file)}
        async with running(tmp_path / "2", {"docker.io": table}) as mirror:
            assert (await mirror.get(BLOB + digest)).body == b"content"


async def test_an_upstream_that_hangs_before_its_answer_is_504(tmp_path, upstream):
    digest = upstream.add_blob(b"content")
    upstream.faults.append(Fault(hang_before=True))
    async with running(tmp_path, {"docker.io": upstream.url}, fetch=QUICK) as mirror:
        status, message = await told(mirror, BLOB + digest)
        assert (status, "in time" in message) == (504, True)
        await back(mirror, BLOB + digest)
        assert (await mirror.get(BLOB + digest)).body == b"content"


@pytest.mark.long
async def test_a_dead_upstream_costs_one_time_out_and_is_noticed_when_it_is_back(
    tmp_path, upstream
):
    """A probe of the mirror's own finds out, no client has to."""
    digests = [upstream.add_blob(random_bytes(1000, seed)) for seed in range(5)]
    upstream.faults.append(Fault(kind="", times=100, hang_before=True))
    async with running(tmp_path, {"docker.io": upstream.url}, fetch=QUICK) as mirror:
        for digest in digests:
            assert (await mirror.get(BLOB + digest)).status == 504
        assert upstream.count("blob") == 1
        upstream.faults.clear()
        await back(mirror, BLOB + digests[0])
        assert upstream.count("ping") >= 1
        assert (await mirror.metrics())['mirror_upstream_up{upstream="docker.io"}'] == 1


async def back(mirror: Mirror, path: str) -> None:
    """Wait until upstream is asked again."""
    async with limit():
        while (await mirror.get(path)).status != 200:
            await asyncio.sleep(0.02)


@pytest.mark.long
async def test_an_upstream_that_stalls_in_the_middle_is_asked_again_from_there(tmp_path, upstream):
    data = random_bytes(4 << 20)
    digest = upstream.add_blob(data)
    upstream.faults.append(Fault(stall=2 << 20))
    async with running(tmp_path, {"docker.io": upstream.url}, fetch=QUICK) as mirror:
        assert (await mirror.get(BLOB + digest)).body == data
    assert upstream.seen[-1].headers.get("Range", "").startswith("bytes=")
    assert upstream.sent[digest] < 2 * len(data)


@pytest.mark.long
async def test_an_upstream_that_breaks_off_for_good_breaks_off_its_clients(tmp_path, upstream):
    # Up to 12 MiB may be in the system's and aiohttp's buffers when the connection breaks.
    data = random_bytes(32 << 20)
    digest = upstream.add_blob(data)
    upstream.faults += [Fault(cut=16 << 20), Fault(times=100, refuse=True)]
    async with running(tmp_path, {"docker.io": upstream.url}) as mirror:
        with pytest.raises(aiohttp.ClientError):
            async with limit():
                await mirror.get(BLOB + digest)
        upstream.faults.clear()
        await back(mirror, BLOB + digest)
        assert (await mirror.get(BLOB + digest)).body == data
    asked = upstream.seen[-1].headers["Range"].removeprefix("bytes=").partition("-")[0]
    assert 4 << 20 < int(asked) <= 16 << 20, "what had arrived was kept"


@pytest.mark.parametrize("status", [500, 502, 503, 418])
async def test_what_upstream_has_no_business_saying_is_502(mirror, upstream, status):
    upstream.add_image(REPO, image(b"layer"), "1")
    fault = Fault(kind="manifest", times=9, status=status, body=b"<html>secret</html>")
    upstream.faults.append(fault)
    answered, message = await told(mirror, f"/v2/{REPO}/manifests/1")
    assert answered == 502
    assert str(status) in message
    assert "secret" not in message


async def test_401_403_and_404_reach_the_client_as_such(mirror, upstream):
    upstream.add_image(REPO, image(b"layer"), "1")
    for status, code in ((401, "UNAUTHORIZED"), (403, "DENIED"), (404, "MANIFEST_UNKNOWN")):
        upstream.faults[:] = [Fault(kind="manifest", times=9, status=status)]
        answer = await mirror.get(f"/v2/{REPO}/manifests/{status}")
        assert answer.status == status
        assert json.loads(answer.body)["errors"][0]["code"] == code


async def test_a_manifest_too_large_to_be_one_is_502(mirror, upstream):
    body = b'{"schemaVersion": 2, "x": "' + b"x" * (5 << 20) + b'"}'
    upstream.add_manifest(REPO, body, "application/vnd.oci.image.manifest.v1+json", "1")
    assert (await mirror.get(f"/v2/{REPO}/manifests/1")).status == 502


async def test_a_listing_that_is_html_is_502(mirror, upstream):
    page = Fault(kind="tags", status=200, body=b"<html></html>")
    upstream.faults.append(page)
    assert (await mirror.get(f"/v2/{REPO}/tags/list")).status == 502


@pytest.mark.parametrize("broken", ["bytes 5-9/10", "bytes x", "bytes 0-1/2"])
async def test_a_range_that_upstream_gets_wrong_is_not_believed(tmp_path, broken):
    data = random_bytes(1 << 20)
    async with FakeRegistry() as upstream:
        digest = upstream.add_blob(data)
        upstream.faults += [Fault(cut=1 << 19), Fault(headers={"Content-Range": broken})]
        async with running(tmp_path, {"docker.io": upstream.url}) as mirror:
            assert (await mirror.get(BLOB + digest)).body == data


@pytest.mark.parametrize("unknown_length", [False, True])
async def test_a_blob_larger_than_allowed_is_broken_off(tmp_path, upstream, unknown_length):
    digest = upstream.add_blob(random_bytes(3 << 20))
    upstream.faults.append(Fault(times=100, unknown_length=unknown_length, endless=unknown_length))
    fetch = {"max_blob_size": "2MiB"}
    async with running(tmp_path, {"docker.io": upstream.url}, fetch=fetch) as mirror:
        if unknown_length:
            with pytest.raises(aiohttp.ClientError):
                await mirror.get(BLOB + digest)
        else:
            status, message = await told(mirror, BLOB + digest)
            assert (status, "max_blob_size" in message) == (502, True)
        await eventually(mirror, "mirror_fills_in_progress", 0)
        assert (await mirror.metrics())["mirror_cache_objects"] == 0


# Several addresses of one upstream.


@pytest.mark.long
@pytest.mark.parametrize(
    "trouble",
    [
        Fault(kind="", times=99, status=503),
        Fault(kind="", times=99, status=404),
        Fault(kind="", times=99, refuse=True),
        Fault(kind="", times=99, status=429, headers={"Retry-After": "60"}),
        Fault(kind="", times=99, hang_before=True),
    ],
    ids=["503", "404", "refused", "429", "hangs"],
)
async def test_what_one_address_cannot_give_the_next_is_asked_for(tmp_path, upstream, trouble):
    app = image(b"layer")
    upstream.add_image(REPO, app, "1")
    async with FakeRegistry(faults=[trouble]) as nearby:
        table = {"url": upstream.url, "mirrors": [nearby.url]}
        async with running(tmp_path, {"docker.io": table}, fetch=QUICK) as mirror:
            assert (await mirror.get(f"/v2/{REPO}/manifests/1")).body == app.manifest
            for digest in app.digests:
                assert (await mirror.get(BLOB + digest)).status == 200
        assert nearby.seen


async def test_addresses_are_asked_in_order_and_mirrors_as_nobody(tmp_path, upstream):
    app = image(b"layer")
    upstream.add_image(REPO, app, "1")
    async with FakeRegistry() as nearby:
        nearby.add_image(REPO, app, "1")
        nearby.guard = upstream.guard = lambda request, path: (
            web.Response(status=401, headers={"WWW-Authenticate": 'Basic realm="x"'})
            if request.path.endswith("/private/manifests/1")
            and not request.headers.get("Authorization")
            else None
        )
        table = {
            "url": upstream.url,
            "mirrors": [nearby.url],
            "username": "me",
            "password": "secret",
        }
        async with running(tmp_path, {"docker.io": table}) as mirror:
            assert (await mirror.get(f"/v2/{REPO}/manifests/1")).body == app.manifest
            assert upstream.seen == []
            await mirror.get("/v2/library/private/manifests/1")
        assert all("Authorization" not in seen.headers for seen in nearby.seen)
        assert any("Authorization" in seen.headers for seen in upstream.seen)


async def test_a_break_in_the_middle_is_gone_on_from_at_the_next_address(tmp_path, upstream):
    data = random_bytes(8 << 20)
    digest = upstream.add_blob(data)
    async with FakeRegistry() as nearby:
        nearby.add_blob(data)
        nearby.faults += [Fault(cut=4 << 20), Fault(times=99, refuse=True)]
        table = {"url": upstream.url, "mirrors": [nearby.url]}
        async with running(tmp_path, {"docker.io": table}) as mirror:
            assert (await mirror.get(BLOB + digest)).body == data
    assert 0 < upstream.sent[digest] < 7 << 20


# Redirects.


@pytest.mark.long
async def test_a_dead_cdn_is_no_dead_registry(tmp_path, upstream):
    """Manifests still come, and the CDN costs one time-out too."""
    app = image(b"first", b"second")
    upstream.add_image(REPO, app, "1")
    async with FakeRegistry(faults=[Fault(kind="", times=99, hang_before=True)]) as cdn:
        upstream.redirect_blobs_to = lambda digest: f"{cdn.url}/v2/x/blobs/{digest}?signed"
        async with running(tmp_path, {"docker.io": upstream.url}, fetch=QUICK) as mirror:
            for digest in app.digests:
                assert (await mirror.get(BLOB + digest)).status == 504
            assert (await mirror.get(f"/v2/{REPO}/manifests/1")).status == 200
        assert cdn.count("blob") == 1


@pytest.mark.parametrize(
    "target",
    [
        *("10.0.0.1", "[::1]", "169.254.169.254", "127.0.0.2", "168.63.129.16", "192.0.0.192"),
        *("[64:ff9b::a00:1]", "[64:ff9b:1::1]", "[2002:a00:1::]", "[::10.0.0.1]", "[fec0::1]"),
        *("[::ffff:10.0.0.1]", "2130706433", "0x7f.1", "localhost", "10.0.0.1."),
    ],
)
async def test_a_public_registry_may_not_redirect_to_a_private_address(
    tmp_path, upstream, monkeypatch, target
):
    really = addresses.is_private
    # The loopback's first address plays a public one.
    monkeypatch.setattr(sessions, "is_private", lambda it: it != "127.0.0.1" and really(it))
    digest = upstream.add_blob(b"content")
    upstream.redirect_blobs_to = lambda _: f"http://{target}:9/v2/x/blobs/{digest}"
    async with running(tmp_path, {"docker.io": upstream.url}) as mirror:
        status, message = await told(mirror, BLOB + digest)
    assert (status, "private_redirects allows it" in message) == (502, True)


async def test_a_public_registry_may_where_the_operator_allows_it(tmp_path, upstream, monkeypatch):
    really = addresses.is_private
    monkeypatch.setattr(sessions, "is_private", lambda it: it != "127.0.0.1" and really(it))
    digest = upstream.add_blob(b"content")
    upstream.redirect_blobs_to = lambda _: f"http://127.0.0.2:{free_port()}/v2/x/blobs/{digest}"
    table = {"url": upstream.url, "private_redirects": True}
    async with running(tmp_path, {"docker.io": table}) as mirror:
        _, message = await told(mirror, BLOB + digest)
    assert "cannot connect to http://127.0.0.2" in message


async def test_a_private_registry_may(mirror, upstream):
    async with FakeRegistry() as storage:
        digest = upstream.add_blob(b"content")
        storage.add_blob(b"content")
        port = storage.port
        upstream.redirect_blobs_to = lambda _: f"http://localhost:{port}/v2/x/blobs/{digest}"
        assert (await mirror.get(BLOB + digest)).body == b"content"
        assert storage.count("blob") == 1


# Statuses that keep their words.


@pytest.mark.parametrize("status", [400, 402, 410, 413, 451])
@pytest.mark.parametrize("path", [f"/v2/{REPO}/manifests/1", BLOB + NOWHERE])
async def test_a_status_with_a_meaning_keeps_it_and_its_words(mirror, upstream, status, path):
    body = {"errors": [{"code": "DENIED", "message": "the bill is not paid"}]}
    upstream.faults.append(Fault(kind="", times=9, status=status, body=json.dumps(body).encode()))
    for _ in range(2):
        answer = await mirror.get(path)
        error = json.loads(answer.body)["errors"][0]
        assert (answer.status, error["code"]) == (status, "DENIED")
        assert error["message"].endswith(f"answered {status} for {REPO}: the bill is not paid")
    assert upstream.count(upstream.seen[0].kind, "GET") == 1
    assert (await mirror.get(path, "HEAD")).status == status


@pytest.mark.parametrize(
    ("status", "code"),
    [
        *((400, "UNSUPPORTED"), (402, "DENIED"), (410, "MANIFEST_UNKNOWN")),
        *((413, "SIZE_INVALID"), (451, "DENIED")),
    ],
)
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>secret</html>",
        b"[]",
        b'{"errors": []}',
        b'{"errors": [{"message": "se\\ncret"}]}',
    ],
)
async def test_a_status_without_readable_words_has_a_code_of_the_spec(
    mirror, upstream, status, code, body
):
    upstream.faults.append(Fault(kind="manifest", times=9, status=status, body=body))
    answer = await mirror.get(f"/v2/{REPO}/manifests/1")
    error = json.loads(answer.body)["errors"][0]
    assert (answer.status, error["code"]) == (status, code)
    assert "cret" not in error["message"]


# A moment of weakness.


class Cut(web.Response):
    """An answer whose connection ends before the last byte."""

    async def write_eof(self, data: bytes = b"") -> None:
        assert isinstance(self.body, bytes)
        assert self._req is not None
        assert self._req.transport is not None
        await self.write(self.body[:-1])
        self._req.transport.close()


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        *((503, kind) for kind in ("manifest", "tags", "referrers")),
        *((status, "blob") for status in (408, 500, 502, 503, 504, 520, 521, 522, 523, 524, 530)),
    ],
)
async def test_one_passing_error_is_not_seen_by_the_client(mirror, upstream, status, kind):
    """Cloudflare, before Docker Hub and others, answers 520 to 524 and 530."""
    app = image(b"layer")
    upstream.add_image(REPO, app, "1")
    places = {
        "manifest": f"manifests/{app.digest}",
        "blob": f"blobs/{app.digests[0]}",
        "tags": "tags/list",
        "referrers": f"referrers/{app.digest}",
    }
    upstream.faults.append(Fault(kind=kind, status=status))
    assert (await mirror.get(f"/v2/{REPO}/{places[kind]}")).status == 200
    assert upstream.count(kind) == 2


async def test_one_503_of_the_storage_is_not_seen_by_the_client(mirror, upstream):
    digest = upstream.add_blob(b"content")
    async with FakeRegistry(blobs=upstream.blobs, faults=[Fault(status=503)]) as storage:
        upstream.redirect_blobs_to = lambda digest: f"{storage.url}/v2/x/blobs/{digest}"
        assert (await mirror.get(BLOB + digest)).body == b"content"
    assert (upstream.count("blob"), storage.count("blob")) == (1, 2)


@pytest.mark.parametrize("kind", ["manifests", "tags", "referrers", "token"])
async def test_one_body_that_breaks_off_is_not_seen_by_the_client(mirror, upstream, kind):
    app = image(b"layer")
    upstream.add_image(REPO, app, "1")
    paths = {"tags": "tags/list", "referrers": f"referrers/{app.digest}"}
    path = f"/v2/{REPO}/{paths.get(kind, f'manifests/{app.digest}')}"
    index = {"schemaVersion": 2, "manifests": [], "tags": [], "token": "T"}
    bodies = {"manifests": app.manifest}
    body = bodies.get(kind, json.dumps(index).encode())
    asked: list[str] = []

    def guard(request: web.BaseRequest, path: str) -> web.Response | None:
        if kind == "token" and request.headers.get("Authorization") != "Bearer T":
            if path != "/token":
                challenge = {"WWW-Authenticate": f'Bearer realm="{upstream.url}/token"'}
                return web.Response(status=401, headers=challenge)
        elif f"/{kind}/" not in path:
            return None
        asked.append(path)
        return Cut(body=body) if len(asked) == 1 else web.Response(body=body)

    upstream.guard = guard
    assert (await mirror.get(path)).status == 200
    assert len(asked) == 2


async def test_a_short_retry_after_is_waited_for(mirror, upstream):
    digest = upstream.add_blob(b"content")
    loop = asyncio.get_running_loop()
    asked: list[float] = []

    def guard(request: web.BaseRequest, path: str) -> web.Response | None:
        asked.append(loop.time())
        again = {"Retry-After": "1"}
        return web.Response(status=503, headers=again) if len(asked) == 1 else None

    upstream.guard = guard
    assert (await mirror.get(BLOB + digest)).body == b"content"
    assert asked[1] - asked[0] >= 0.9


@pytest.mark.parametrize("status", [500, 501, 502, 503, 504])
async def test_an_error_that_lasts_is_seen(mirror, upstream, status):
    digest = upstream.add_blob(b"content")
    upstream.faults.append(Fault(times=9, status=status))
    assert (await mirror.get(BLOB + digest)).status == 502
    assert upstream.count("blob") == (1 if status == 501 else 2)


@pytest.mark.parametrize(
    "fault",
    [
        Fault(hang_before=True),
        Fault(times=9, refuse=True),
        Fault(kind="tags", status=200, body=b'{"tags": []}', gate=asyncio.Event()),
    ],
    ids=["silent", "broken", "slow body"],
)
async def test_one_object_that_fails_takes_no_other_with_it(tmp_path, upstream, fault):
    """24 of 149 other blobs were 504 after one that was slow."""
    digests = [upstream.add_blob(random_bytes(1000, seed)) for seed in range(30)]
    path = f"/v2/{REPO}/tags/list" if fault.kind == "tags" else BLOB + digests[0]
    upstream.faults.append(fault)
    async with running(tmp_path, {"docker.io": upstream.url}, fetch=QUICK) as mirror:
        for _ in range(4 if fault.refuse else 1):
            assert (await mirror.get(path)).status == 502 if fault.refuse else 504
        upstream.faults.clear()
        answers = await asyncio.gather(*(mirror.get(BLOB + digest) for digest in digests[1:]))
        assert {answer.status for answer in answers} == {200}
        assert (await mirror.get(BLOB + digests[0])).status == 200


async def test_a_server_that_breaks_off_each_answer_is_left_alone_for_a_moment(mirror, upstream):
    digests = [upstream.add_blob(random_bytes(1000, seed)) for seed in range(5)]
    upstream.faults.append(Fault(kind="", times=999, refuse=True))
    for digest in digests:
        status, message = await told(mirror, BLOB + digest)
        assert status == 502
    assert "not asked again" in message
    upstream.faults.clear()
    await back(mirror, BLOB + digests[0])


@pytest.mark.parametrize("allowed", [False, True])
async def test_a_registry_with_tls_may_redirect_to_http_where_the_operator_allows_it(
    tmp_path, allowed
):
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    ca_file = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(ca_file))
    async with FakeRegistry(tls=context) as upstream, FakeRegistry() as storage:
        digest = upstream.add_blob(b"content")
        storage.add_blob(b"content")
        upstream.redirect_blobs_to = lambda digest: f"{storage.url}/v2/x/blobs/{digest}"

        def guard(request: web.BaseRequest, path: str) -> web.Response | None:
            challenge = {"WWW-Authenticate": 'Basic realm="x"'}
            known = "Authorization" in request.headers
            return None if known else web.Response(status=401, headers=challenge)

        upstream.guard = guard
        table = {"url": upstream.url, "ca_file": str(ca_file), "http_redirects": allowed}
        table |= {"username": "me", "password": "secret"}
        async with running(tmp_path / "cache", {"docker.io": table}) as mirror:
            answer = await mirror.get(BLOB + digest)
    assert answer.status == (200 if allowed else 502)
    assert allowed or "(http_redirects allows it)" in answer.body.decode()
    assert all("Authorization" not in seen.headers for seen in storage.seen)
    assert len(storage.seen) == allowed
