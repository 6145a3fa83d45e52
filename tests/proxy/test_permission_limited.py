"""``allow`` and ``deny`` hold inside the proxy, however a request is written."""

import pytest
from aiohttp import web

from tests.fakes import image
from tests.proxy.clients import ask, connected, trusting
from tests.proxy.registry import Recorder, recording
from tests.running import running

pytestmark = [pytest.mark.slow]

NAME, OTHER = "second.test", "third.test"
APP = image(b"layer")
MANIFEST = f"manifests/{APP.digest}"
BLOB = f"blobs/{APP.digests[0]}"
START = "/v2/team/app/blobs/uploads/"


@pytest.fixture
async def registry():
    async with recording() as recorder:
        recorder.answer = lambda _: web.Response(status=202, body=b"what the registry has")
        yield recorder


@pytest.fixture
async def office(tmp_path, registry: Recorder):
    (tmp_path / "ca.pem").write_bytes(registry.ca)
    second = {"url": registry.url, "ca_file": str(tmp_path / "ca.pem")}
    limits = {"allow": ["team/*", "open/*"], "deny": ["team/secret*"]}
    table = {
        "docker.io": "http://127.0.0.1:9",
        NAME: {**second, **limits, "aliases": ["alias.test:8443"]},
        OTHER: {**second, "url": "http://127.0.0.1:9"},
    }
    async with running(tmp_path / "cache", table, proxy={"listen": "127.0.0.1:0"}) as mirror:
        yield mirror


@pytest.fixture
def trust(tmp_path, office):
    return trusting(tmp_path / "cache")


async def said(office, trust, line: str, *fields: str, body: bytes = b"", host: str = NAME) -> int:
    """The status of the answer to a request line inside a connection to the registry."""
    async with connected(office) as raw:
        assert " 200 " in await raw.connect(f"{NAME}:443")
        await raw.start_tls(trust, NAME)
        length = (f"Content-Length: {len(body)}",) if body else ()
        lines = [f"{line} HTTP/1.1", f"Host: {host}", *length, *fields, "Connection: close"]
        await raw.send("\r\n".join([*lines, "", ""]).encode() + body)
        return int((await raw.rest()).split(b" ")[1])


def got_through(registry: Recorder) -> list[str]:
    """What the registry was asked for, but for its challenge, which the mirror itself looks at."""
    return [path for method, path, *_ in registry.seen if (method, path) != ("GET", "/v2/")]


KEPT_BACK = [
    *(f"/v2/{name}/{MANIFEST}" for name in ("team/secret", "team/secret/x", "other/app", "app")),
    *(f"/v2/team/secret/{path}" for path in (BLOB, "tags/list", f"referrers/{APP.digest}")),
    f"/v2/team/secret/{BLOB}".replace(":", "%3A"),
    f"/v2/%74eam/secret/{MANIFEST}",
    f"/v2/team%2Fsecret/{MANIFEST}",
    f"/v2/team/app/%6Danifests/{APP.digest}",
    f"/v%32/team/secret/{MANIFEST}",
    f"/V2/team/secret/{MANIFEST}",
    f"/v2/Team/Secret/{MANIFEST}",
    f"/v2/team/secret/Manifests/{APP.digest}",
    f"//v2/team/secret/{MANIFEST}",
    f"/v2//team/secret/{MANIFEST}",
    f"/v2/team//secret/{MANIFEST}",
    f"/v2/team/secret/{MANIFEST}/",
    f"/./v2/team/secret/{MANIFEST}",
    f"/x/../v2/team/secret/{MANIFEST}",
    f"/v2/team/app/../secret/{MANIFEST}",
    f"/v2/team/app/blobs/uploads/../../../secret/{MANIFEST}",
    f"/v2/team/app/..%2Fsecret/{MANIFEST}",
    f"/v2/team/app/%2e%2e/secret/{MANIFEST}",
    f"/v2/team/app;/../secret/{MANIFEST}",
    f"/v2;x/team/secret/{MANIFEST}",
    f"/v2\\team\\secret\\{MANIFEST}",
    f"/{NAME}/v2/team/secret/{MANIFEST}",
    f"/prefix/v2/team/secret/{MANIFEST}",
    f"https://{NAME}/v2/team/secret/{MANIFEST}",
    f"https://{NAME}:443//v2/team/secret/{MANIFEST}",
    f"/token/../v2/team/secret/{MANIFEST}",
    f"/token#/v2/team/secret/{MANIFEST}",
    f"/artifacts-uploads/../v2/team/secret/{MANIFEST}",
    "/v2/_catalog",
    "/v2/team/secret/blobs/uploads/1",
    "/v2/team/app/blobs/uploads/1/../2",
    "/v2/_oci/ext/discover",
    "/v1/search?q=secret",
    "/v1/repositories/team/secret/images",
    "/api/v2.0/projects/team/repositories/secret/artifacts",
    "/api/v4/projects/1/registry/repositories",
    "/api/v1/repository/team/secret",
    "/artifactory/docker/team/secret/latest/manifest.json",
    "/artifacts-uploads/namespaces/p/repositories/r/uploads/1",
    "/",
]


@pytest.mark.parametrize("target", KEPT_BACK)
async def test_what_may_not_be_had_is_not_had_however_it_is_written(
    office, trust, registry, target
):
    for method in ("GET", "HEAD", "POST", "OPTIONS", "REPORT"):
        for body in (b"", b"x"):
            status = await said(office, trust, f"{method} {target}", body=body)
            assert status in {400, 403, 404, 405}, (method, body)
    chunked = ("Transfer-Encoding: chunked",)
    assert await said(office, trust, f"GET {target}", *chunked, body=b"0\r\n\r\n") in {400, 403}
    assert got_through(registry) == []


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE", "POST"])
async def test_nothing_is_written_to_what_may_not_be_had(office, trust, registry, method):
    for path in ("manifests/1", "blobs/uploads/", "blobs/uploads/1?digest=x", "blobs/upload/1"):
        assert await said(office, trust, f"{method} /v2/team/secret/{path}", body=b"x") == 403
    assert await said(office, trust, f"{method} /elsewhere/1", body=b"x") == 403
    assert got_through(registry) == []


@pytest.mark.parametrize(
    "query",
    [
        f"mount={APP.digest}&from=team/secret",
        f"mount={APP.digest}&from=team%2Fsecret",
        f"mount={APP.digest}&fr%6Fm=team/secret",
        f"from=team/app&mount={APP.digest}&from=team/secret",
        f"from=team/secret;mount={APP.digest}",
        f"mount={APP.digest}",
        f"mount={APP.digest}#&from=team/app",
        f"mount={APP.digest}&from=",
        f"mount={APP.digest}&from=../team/secret",
    ],
)
async def test_no_blob_is_mounted_from_what_may_not_be_had(office, trust, registry, query):
    assert await said(office, trust, f"POST {START}?{query}") in {400, 403}
    assert got_through(registry) == []


PASSED = [
    ("GET", "/v2/team/app/tags/list", b"{}"),
    ("HEAD", f"/v2/team/app/{BLOB}", b""),
    ("HEAD", f"/v2/team/app/{MANIFEST}", b""),
    ("POST", START, b""),
    ("POST", f"{START}?mount={APP.digest}&from=open%2Fbase", b""),
    ("GET", f"{START}1", b""),
    ("PATCH", f"{START}1-2_3.4==?_state=a%2Fb%3D", b"bytes"),
    ("PUT", f"{START}1?_state=a&digest={APP.digest}", b""),
    ("DELETE", f"{START}1", b""),
    ("PATCH", "/v2/team/app/blobs/upload/1", b"bytes"),
    ("PATCH", "/artifacts-uploads/namespaces/p/repositories/r/uploads/AB-c_1", b"bytes"),
    ("PUT", "/v2/team/app/manifests/1", APP.manifest),
    ("DELETE", f"/v2/team/app/{MANIFEST}", b""),
    ("GET", "/token?scope=repository:team/app:pull", b""),
    ("POST", "/oauth2/token", b"grant_type=refresh_token"),
    ("GET", "/v2/auth?account=a", b""),
    ("GET", "/service/token?a=b", b""),
]


@pytest.mark.parametrize(("method", "target", "body"), PASSED)
async def test_pushes_and_tokens_pass_as_they_were_sent(
    office, trust, registry, method, target, body
):
    fields = ("Authorization: Bearer x", "X-Original-URL: /v2/team/secret/tags/list")
    assert await said(office, trust, f"{method} {target}", *fields, body=body) == 202
    assert [seen[:2] for seen in registry.seen] == [(method, target)]
    assert registry.seen[0][3] == body
    assert registry.fields("Authorization") == ["Bearer x"]
    assert registry.fields("X-Original-URL") == []


async def test_a_digest_may_be_written_with_an_escape(office, trust, registry):
    path = f"/v2/team/app/{BLOB}"
    assert await said(office, trust, f"HEAD {path.replace(':', '%3A')}") == 202
    assert got_through(registry) == [path], "in its one spelling"


async def test_the_token_service_that_the_registry_names_is_reached(office, trust, registry):
    realm = f"{registry.url}/realms/team/auth"

    def answer(request: web.BaseRequest) -> web.Response:
        headers = {"WWW-Authenticate": f'Bearer realm="{realm}",service="x"'}
        return web.Response(status=401 if request.path == "/v2/" else 202, headers=headers)

    registry.answer = answer
    assert await said(office, trust, "GET /realms/team/auth?scope=x") == 202
    assert await said(office, trust, "GET /realms/team/auth/x") == 403
    assert await said(office, trust, "PUT /realms/team/auth") == 403
    assert got_through(registry) == ["/realms/team/auth?scope=x"]
    realm = "https://elsewhere.test/realms/team/auth"
    assert await said(office, trust, "GET /realms/team/auth") == 403


async def test_over_plain_http_it_is_the_same(office, registry):
    async with connected(office) as raw:
        for target in (f"//v2/team/secret/{MANIFEST}", f"/v2/team/%73ecret/{MANIFEST}", "/x"):
            await raw.send(f"GET http://{NAME}{target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            assert b" 403 " in await raw.reader.readuntil(b"\r\n\r\n")
            await raw.reader.readuntil(b"]}")
    assert got_through(registry) == []


@pytest.mark.parametrize(
    "host",
    [OTHER, "registry-1.docker.io", "evil.test", f"{NAME}:8443", f"x.{NAME}", f"{NAME}.evil"],
)
async def test_a_request_for_another_server_is_refused(office, trust, registry, host):
    path = f"/v2/team/app/{BLOB}"
    for line in (f"HEAD {path}", f"GET {path}", "GET /v2/", "GET /token", f"POST {START}"):
        assert await said(office, trust, line, host=host) == 421
        if ":" not in host:
            absolute = line.replace(" /", f" https://{host}/")
            assert await said(office, trust, absolute) == 421
    assert registry.seen == []


@pytest.mark.parametrize("host", ["", "second.test/x", "a b", "second.test@evil.test"])
async def test_a_host_that_is_none_is_refused(office, trust, registry, host):
    assert await said(office, trust, "GET /token", host=host) == 400
    assert await said(office, trust, "GET /token", "Host: second.test") == 400, "two of them"
    assert registry.seen == []


@pytest.mark.parametrize("host", [NAME, f"{NAME}:443", NAME.upper(), "alias.test:8443"])
async def test_every_name_of_the_registry_itself_is_fine(office, trust, registry, host):
    assert await said(office, trust, "GET /token", host=host) == 202
    assert registry.fields("Host") == [host]


async def test_a_registry_without_such_limits_is_passed_on_to_as_ever(office, tmp_path, registry):
    (tmp_path / "ca.pem").write_bytes(registry.ca)
    table = {
        "docker.io": "http://127.0.0.1:9",
        NAME: {"url": registry.url, "ca_file": str(tmp_path / "ca.pem")},
    }
    async with running(tmp_path / "open", table, proxy={"listen": "127.0.0.1:0"}) as mirror:
        trust = trusting(tmp_path / "open")
        targets = ["/api/v2.0/x", "/v2/_catalog", f"/v2/%74eam/{MANIFEST}", "/v2/_oci/ext/discover"]
        for target in targets:
            assert (await ask(mirror, trust, f"https://{NAME}{target}")).status == 202
        assert got_through(registry) == targets


@pytest.mark.parametrize(
    ("allow", "status"),
    [(["*:*"], 403), (["*.test:*"], 403), (["second.test:8444", "*"], 502)],
)
async def test_no_tunnel_leads_past_the_limits_unless_it_is_named(tmp_path, allow, status):
    table = {
        "docker.io": "http://127.0.0.1:9",
        NAME: {"url": "https://deep.test/registry", "deny": ["team/secret"]},
    }
    proxy = {"listen": "127.0.0.1:0", "allow": allow}
    async with running(tmp_path / "tunnels", table, proxy=proxy) as mirror:
        async with connected(mirror) as raw:
            assert f" {status} " in await raw.connect(f"{NAME}:8444")
        async with connected(mirror) as raw:
            assert " 403 " in (answer := await raw.connect("deep.test:8443"))
            if "*:*" in allow:
                assert "deep.test:8443" in answer
                assert "allow and deny of [upstreams]" in answer


@pytest.mark.parametrize(
    ("section", "limited"),
    [
        ({"policy": [{"images": ["**"]}]}, True),
        ({"policy": [{"images": [f"{NAME}/team/*"]}]}, True),
        ({"policy": [{"images": ["docker.io/**"]}]}, False),
        ({"pin": [{"image": f"{NAME}/team/app:1", "digest": APP.digest}]}, True),
        ({"block": [{"image": APP.digest}]}, True),
        ({"block": [{"image": "docker.io/**"}]}, False),
    ],
)
async def test_policies_limit_what_passes_by_the_cache(tmp_path, registry, section, limited):
    (tmp_path / "ca.pem").write_bytes(registry.ca)
    table = {
        "docker.io": "http://127.0.0.1:9",
        NAME: {"url": registry.url, "ca_file": str(tmp_path / "ca.pem")},
    }
    proxy = {"listen": "127.0.0.1:0", "allow": ["*:*"]}
    async with running(tmp_path / "cache", table, proxy=proxy, **section) as mirror:
        trust = trusting(tmp_path / "cache")
        target = f"/v2/team/app/%6Danifests/{APP.digest}"
        passed = await said(mirror, trust, f"GET {target}", body=b"x")
        assert passed in ({400, 403} if limited else {202})
        async with connected(mirror) as raw:
            answer = await raw.connect(f"{NAME}:8444")
            assert (" 403 " in answer and "policies" in answer) == limited


@pytest.fixture
async def blocking(tmp_path, registry: Recorder):
    """A mirror that blocks a repository, and has neither ``allow`` nor ``deny``."""
    (tmp_path / "ca.pem").write_bytes(registry.ca)
    table = {
        "docker.io": "http://127.0.0.1:9",
        NAME: {"url": registry.url, "ca_file": str(tmp_path / "ca.pem")},
    }
    rule = {"image": f"{NAME}/team/secret:*"}
    proxy = {"listen": "127.0.0.1:0"}
    async with running(tmp_path / "cache", table, proxy=proxy, block=[rule]) as mirror:
        yield mirror


@pytest.mark.parametrize(
    "target",
    [each for each in KEPT_BACK if each.endswith(f"/team/secret/{MANIFEST}") or BLOB in each]
    + [f"/v2/team/secret/{BLOB}".replace(":", "%3A"), f"/v2/team/app/%6Danifests/{APP.digest}"],
)
async def test_what_is_blocked_is_not_had_however_it_is_written(
    blocking, tmp_path, registry, target
):
    trust = trusting(tmp_path / "cache")
    for method in ("GET", "HEAD"):
        for body in (b"", b"x"):
            assert await said(blocking, trust, f"{method} {target}", body=body) in {400, 403, 404}
    assert got_through(registry) == []
    # Blocks of another registry do not decide about this one.
    await said(blocking, trust, f"HEAD {target}", "OCI-Namespace: docker.io")
    assert got_through(registry) == []
    assert await said(blocking, trust, f"HEAD /v2/team/app/{MANIFEST}") == 202
    assert await said(blocking, trust, f"POST {START}") == 202
