"""What is no pull goes to the registry as it is, and comes back as it is."""

import asyncio
import json
import os

import aiohttp
import pytest
from aiohttp import web

from tests.fakes import image
from tests.fakes.content import OCI_MANIFEST, digest_of
from tests.proxy.clients import ask, connected, trusting
from tests.proxy.registry import Recorder, recording
from tests.running import running
from tests.waiting import limit

pytestmark = [pytest.mark.slow]


NAME = "second.test"
APP = image(b"layer")
REPO = "team/app"


@pytest.fixture
async def registry():
    async with recording() as recorder:
        yield recorder


@pytest.fixture
async def office(tmp_path, registry: Recorder):
    (tmp_path / "ca.pem").write_bytes(registry.ca)
    table = {
        "docker.io": "http://127.0.0.1:9",
        NAME: {"url": registry.url, "ca_file": str(tmp_path / "ca.pem")},
    }
    proxy, tags = {"listen": "127.0.0.1:0"}, {"max_age": "1h", "negative_max_age": "1h"}
    async with running(tmp_path / "cache", table, proxy=proxy, tags=tags) as mirror:
        yield mirror


@pytest.fixture
def trust(tmp_path, office):
    return trusting(tmp_path / "cache")


def url(path: str) -> str:
    return f"https://{NAME}{path}"


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
@pytest.mark.parametrize("body", [b"", b"a layer" * 100_000])
async def test_a_write_arrives_as_it_was_sent(office, trust, registry, method, body):
    registry.answer = lambda _: web.Response(status=202, headers={"Location": "/v2/x?_state=a%2Fb"})
    headers = {"Authorization": "Bearer secret", "User-Agent": "docker/29", "X-Odd": "ä b"}
    path = "/v2/team/app/blobs/uploads/1?_state=a%2Fb%3D&digest=sha256:0%2B"
    answer = await ask(office, trust, url(path), method, data=body or None, headers=headers)
    assert answer.status == 202
    assert answer.headers["Location"] == "/v2/x?_state=a%2Fb"
    seen_method, seen_path, _, seen_body = registry.seen[-1]
    assert (seen_method, seen_path, seen_body) == (method, path, body)
    for name, value in headers.items():
        assert registry.fields(name) == [value]
    assert registry.fields("Host") == [NAME]


async def test_nothing_is_said_that_the_client_did_not_say(office, trust, registry):
    registry.answer = lambda _: web.Response(status=201)
    async with connected(office) as raw:
        await raw.connect(f"{NAME}:443")
        await raw.start_tls(trust, NAME)
        await raw.send(
            b"POST /v2/a/blobs/uploads/ HTTP/1.1\r\nHost: second.test\r\nContent-Length: 0\r\n"
            b"Connection: x-mine, close\r\nX-Mine: by hop\r\nProxy-Authorization: Basic x\r\n\r\n"
        )
        assert b" 201 " in await raw.rest()
    names = {name.lower() for name, _ in registry.seen[-1][2]}
    assert names <= {"host", "content-length"}


async def test_an_upload_is_streamed_while_it_comes(office, trust, registry):
    """In chunks of unknown number too; the registry has the first before the last is made."""
    registry.answer = lambda _: web.Response(status=202)
    go_on = asyncio.Event()

    async def chunks():
        yield b"first"
        await go_on.wait()
        yield b"last"

    uploading = asyncio.create_task(
        ask(office, trust, url("/v2/team/app/blobs/uploads/1"), "PATCH", data=chunks())
    )
    async with limit():
        assert await registry.arrived.get() == b"first"
    go_on.set()
    assert (await uploading).status == 202
    assert registry.seen[-1][3] == b"firstlast"
    assert registry.fields("Transfer-Encoding") == ["chunked"]


async def test_an_answer_of_any_size_comes_as_it_was_sent(office, trust, registry):
    body = os.urandom(3_000_000)

    def answer(_: web.BaseRequest) -> web.Response:
        response = web.Response(body=body, headers={"Content-Type": "x/y", "X-Twice": "1"})
        response.headers.add("X-Twice", "2")
        response.headers["Content-Encoding"] = "gzip"
        return response

    registry.answer = answer
    said = await ask(office, trust, url("/api/v1/anything?x=%20"))
    assert said.body == body
    assert said.headers["Content-Type"] == "x/y"
    assert said.headers["Content-Encoding"] == "gzip"
    assert said.headers.getall("X-Twice") == ["1", "2"]
    assert registry.seen[-1][1] == "/api/v1/anything?x=%20"


@pytest.mark.parametrize("path", ["/token", "/v2/auth", "/v2/_catalog", "/service/token?a=b"])
async def test_token_services_of_the_registry_itself_are_reached(office, trust, registry, path):
    registry.answer = lambda _: web.json_response({"token": "t"})
    assert json.loads((await ask(office, trust, url(path))).body) == {"token": "t"}


async def test_the_registrys_challenge_reaches_the_client(office, trust, registry):
    challenge = f'Bearer realm="{registry.url}/token",service="second"'
    refusal = {"WWW-Authenticate": challenge}
    registry.answer = lambda _: web.json_response({"errors": []}, status=401, headers=refusal)
    answer = await ask(office, trust, url("/v2/"))
    assert (answer.status, answer.headers["WWW-Authenticate"]) == (401, challenge)
    for path in (f"/v2/{REPO}/manifests/1", f"/v2/{REPO}/blobs/{APP.digest}"):
        for method in ("GET", "HEAD"):
            answer = await ask(office, trust, url(path), method)
            assert (answer.status, answer.headers["WWW-Authenticate"]) == (401, challenge)


async def test_a_password_for_a_registry_with_tls_is_asked_for_over_tls(office, trust, registry):
    """crane and oras reject http here; Docker and containerd would send the password."""
    for place in (registry.url.removeprefix("https://"), f"{NAME}:80"):
        challenges = f'Bearer realm="http://{place}/token",service="x", Basic realm="http://x"'
        refusal = {"WWW-Authenticate": challenges}
        registry.answer = lambda _, refusal=refusal: web.Response(status=401, headers=refusal)
        wanted = challenges.replace(f"http://{place}", f"https://{place.removesuffix(':80')}")
        # The mirror itself asks for an anonymous token before a manifest.
        for path in ("/v2/", f"/v2/{REPO}/manifests/1") if "127" in place else ("/v2/",):
            assert (await ask(office, trust, url(path))).headers["WWW-Authenticate"] == wanted


@pytest.mark.parametrize("status", [404, 500, 503, 302])
async def test_a_registry_that_does_not_greet_as_one_is_greeted_for(
    office, trust, registry, status
):
    registry.answer = lambda _: web.Response(status=status)
    answer = await ask(office, trust, url("/v2/"))
    assert answer.status == 200
    assert answer.headers["Docker-Distribution-Api-Version"] == "registry/2.0"


@pytest.mark.parametrize("target", ["*", "foo", ".evil.test/", "@evil.test/", "?a"])
async def test_a_target_that_is_no_path_never_becomes_part_of_a_host(
    office, trust, registry, target
):
    async with connected(office) as raw:
        await raw.connect(f"{NAME}:443")
        await raw.start_tls(trust, NAME)
        fields = f"Host: {NAME}\r\nConnection: close\r\n\r\n"
        await raw.send(f"OPTIONS {target} HTTP/1.1\r\n{fields}".encode())
        assert b" 400 " in (await raw.rest()).partition(b"\r\n")[0]
    assert registry.seen == []


async def test_a_token_may_be_long(office, trust, registry):
    registry.answer = lambda _: web.Response(status=202)
    token = "Bearer " + "x" * 30_000
    path = url("/v2/a/blobs/uploads/?_state=" + "y" * 20_000)
    answer = await ask(office, trust, path, "POST", headers={"Authorization": token})
    assert answer.status == 202
    assert registry.fields("Authorization") == [token]


@pytest.mark.long
async def test_a_registry_that_hangs_costs_a_moment_and_no_pull(tmp_path, registry):
    (tmp_path / "ca.pem").write_bytes(registry.ca)
    upstream = {"url": registry.url, "ca_file": str(tmp_path / "ca.pem")}
    table = {"docker.io": "http://127.0.0.1:9", NAME: upstream}
    fetch, proxy = {"first_byte_timeout": "2s"}, {"listen": "127.0.0.1:0"}
    async with running(tmp_path / "cache", table, proxy=proxy, fetch=fetch) as mirror:
        trust = trusting(tmp_path / "cache")
        registry.answer = serving({"1": APP.manifest})
        manifest = url(f"/v2/{REPO}/manifests/{APP.digest}")
        assert (await ask(mirror, trust, manifest)).status == 200
        waiting = asyncio.Event()
        registry.hang = waiting
        assert (await ask(mirror, trust, url("/v2/"))).status == 200
        assert (await ask(mirror, trust, manifest, "HEAD")).status == 200
        waiting.set()


async def test_a_registry_that_is_gone_is_502_for_a_push_and_no_time_out(tmp_path):
    table = {"docker.io": "http://127.0.0.1:9"}
    async with running(tmp_path / "c", table, proxy={"listen": "127.0.0.1:0"}) as mirror:
        trust = trusting(tmp_path / "c")
        hub = "https://registry-1.docker.io/v2/"
        assert (await ask(mirror, trust, hub)).status == 200
        answer = await ask(mirror, trust, f"{hub}team/app/blobs/uploads/", "POST")
        assert answer.status == 502
        assert b"UNAVAILABLE" in answer.body


async def test_an_answer_before_the_body_is_read_reaches_the_client(office, trust, registry):
    registry.early = lambda _: web.Response(status=401, headers={"WWW-Authenticate": "Basic"})
    answer = await ask(office, trust, url("/v2/a/blobs/uploads/"), "POST", data=b"x" * 1000)
    assert (answer.status, answer.headers["WWW-Authenticate"]) == (401, "Basic")


async def test_a_client_that_waits_to_be_told_to_go_on_is_told(office, trust, registry):
    registry.answer = lambda _: web.Response(status=201)
    async with connected(office) as raw:
        await raw.connect(f"{NAME}:443")
        await raw.start_tls(trust, NAME)
        await raw.send(
            b"PUT /v2/a/blobs/uploads/1 HTTP/1.1\r\nHost: second.test\r\nContent-Length: 5\r\n"
            b"Expect: 100-continue\r\n\r\n"
        )
        async with limit():
            assert await raw.reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            await raw.send(b"hello")
            assert b" 201 " in await raw.reader.readuntil(b"\r\n\r\n")
    assert registry.seen[-1][3] == b"hello"


async def test_a_body_that_breaks_off_breaks_the_connection(office, trust, registry):
    def answer(request: web.BaseRequest) -> web.StreamResponse:
        assert request.transport is not None
        asyncio.get_running_loop().call_later(0.05, request.transport.abort)
        return web.Response(body=b"x" * 50, headers={"Content-Length": "100"})

    registry.answer = answer
    with pytest.raises(aiohttp.ClientError):
        await ask(office, trust, url("/anything"))


async def test_an_upload_that_is_broken_off_is_not_taken_for_the_whole(office, trust, registry):
    async with connected(office) as raw:
        await raw.connect(f"{NAME}:443")
        await raw.start_tls(trust, NAME)
        await raw.send(
            b"PUT /v2/a/blobs/uploads/1 HTTP/1.1\r\nHost: second.test\r\n"
            b"Content-Length: 100\r\n\r\nhalf"
        )
        async with limit():
            assert await registry.arrived.get() == b"half"
        raw.writer.transport.abort()
    assert (await ask(office, trust, url("/v2/"))).status == 200
    assert [seen[1] for seen in registry.seen] == ["/v2/"], "the other one never ended"


# What the cache knows, and who pushes.


def serving(tags: dict[str, bytes]):
    """Answers manifests by tag, and everything else as if it were not there."""

    def answer(request: web.BaseRequest) -> web.Response:
        reference = request.path.rpartition("/")[2]
        known = {**tags, **{digest_of(body): body for body in tags.values()}}
        if request.method in {"PUT", "DELETE"}:
            return web.Response(status=201)
        if "/manifests/" not in request.path or reference not in known:
            return web.Response(status=404)
        body = known[reference]
        headers = {"Docker-Content-Digest": digest_of(body), "Content-Type": OCI_MANIFEST}
        return web.Response(body=body, headers=headers)

    return answer


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
async def test_after_a_push_a_tag_means_the_new_image(office, trust, registry, method):
    other = image(b"another")
    tags = {"1": APP.manifest}
    registry.answer = serving(tags)
    path = f"/v2/{REPO}/manifests/1"
    for _ in range(2):
        assert (await ask(office, trust, url(path))).body == APP.manifest
        assert (await office.get(f"/v2/{NAME}/{REPO}/manifests/1")).body == APP.manifest
    tags["1"] = other.manifest
    assert (await ask(office, trust, url(path))).body == APP.manifest, "fresh for an hour"
    assert (await ask(office, trust, url(path), method, data=b"{}")).status == 201
    assert (await ask(office, trust, url(path))).body == other.manifest
    assert (await office.get(f"/v2/{NAME}/{REPO}/manifests/1")).body == other.manifest


async def test_after_a_push_what_was_not_there_is_looked_for_again(office, trust, registry):
    tags: dict[str, bytes] = {}
    registry.answer = serving(tags)
    path = url(f"/v2/{REPO}/manifests/1")
    assert (await ask(office, trust, path)).status == 404
    tags["1"] = APP.manifest
    assert (await ask(office, trust, path)).status == 404, "believed for an hour"
    await ask(office, trust, path, "PUT", data=APP.manifest)
    assert (await ask(office, trust, path)).body == APP.manifest


async def test_a_push_that_failed_changes_nothing(office, trust, registry):
    tags = {"1": APP.manifest}
    registry.answer = serving(tags)
    path = url(f"/v2/{REPO}/manifests/1")
    await ask(office, trust, path)
    registry.early = lambda request: web.Response(status=403) if request.method == "PUT" else None
    assert (await ask(office, trust, path, "PUT", data=b"{}")).status == 403
    asked = len(registry.seen)
    assert (await ask(office, trust, path)).headers["Cache-Status"] == "mirror; hit"
    assert len(registry.seen) == asked


@pytest.mark.parametrize("kind", ["manifests", "blobs"])
async def test_whether_a_repository_has_a_digest_is_asked_of_the_registry(
    office, trust, registry, kind
):
    """What is cached from elsewhere is not there yet: who pushes would leave it out."""
    registry.answer = serving({"1": APP.manifest})
    assert (await ask(office, trust, url(f"/v2/{REPO}/manifests/1"))).status == 200
    registry.answer = lambda _: web.Response(status=404)
    answer = await ask(office, trust, url(f"/v2/new/repo/{kind}/{APP.digest}"), "HEAD")
    assert answer.status == 404
    assert registry.seen[-1][:2] == ("HEAD", f"/v2/new/repo/{kind}/{APP.digest}")


async def test_a_head_is_answered_although_the_manifest_cannot_be_fetched(office, trust, registry):
    digest = f"sha256:{'3' * 64}"

    def answer(request: web.BaseRequest) -> web.Response:
        headers = {"Docker-Content-Digest": digest}
        return web.Response(status=200 if request.method == "HEAD" else 500, headers=headers)

    registry.answer = answer
    head = await ask(office, trust, url(f"/v2/{REPO}/manifests/{digest}"), "HEAD")
    assert (head.status, head.headers["Docker-Content-Digest"]) == (200, digest)


@pytest.mark.parametrize("status", [429, 503])
async def test_while_the_registry_cannot_say_it_is_what_the_cache_has(
    office, trust, registry, status
):
    registry.answer = serving({"1": APP.manifest})
    assert (await ask(office, trust, url(f"/v2/{REPO}/manifests/1"))).status == 200
    registry.answer = lambda _: web.Response(status=status)
    answer = await ask(office, trust, url(f"/v2/{REPO}/manifests/{APP.digest}"), "HEAD")
    assert answer.status == 200
    assert answer.headers["Cache-Status"] == "mirror; hit"


async def test_what_is_passed_on_is_counted_without_being_a_pull(office, trust, registry):
    registry.answer = lambda _: web.Response(status=202)
    await ask(office, trust, url("/v2/a/blobs/uploads/"), "POST")
    answer = await ask(office, trust, url("/v2/a/blobs/uploads/"), "REPORT")
    assert answer.status == 202
    figures = await office.metrics()
    for method in ("POST", "other"):
        labels = f'code="202",kind="passed",method="{method}",upstream="{NAME}"'
        assert figures[f"mirror_upstream_requests_total{{{labels}}}"] == 1
    assert not [name for name in figures if name.startswith("mirror_requests_total")]


async def test_a_tag_that_was_missing_is_not_after_its_push(office, trust, registry):
    registry.answer = lambda request: web.Response(status=201 if request.method == "PUT" else 404)
    manifest = url(f"/v2/{REPO}/manifests/new")
    assert (await ask(office, trust, manifest)).status == 404
    assert (await ask(office, trust, manifest, "PUT", data=APP.manifest)).status == 201
    registry.answer = lambda _: web.Response(status=500)
    assert (await ask(office, trust, manifest)).status == 502
