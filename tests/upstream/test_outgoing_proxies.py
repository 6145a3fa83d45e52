"""What the mirror takes from its environment: proxies by Go's rules, and no credentials."""

import asyncio
import base64
import ssl

import pytest
import trustme
from aiohttp import web

from mirror.user_error import UserError
from tests.fakes import FakeRegistry, Fault, image
from tests.fakes.collector import Collector
from tests.fakes.proxy import FakeProxy
from tests.peers.mirror import MirrorProcess
from tests.peers.process import free_port
from tests.running import Mirror, running

pytestmark = pytest.mark.slow

REPO = "library/app"
APP = image(b"layer")
MANIFEST = f"/v2/{REPO}/manifests/1"
LOGIN = "Basic " + base64.b64encode(b"me:hunter2").decode()
VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "REQUEST_METHOD")


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture
def netrc(tmp_path, monkeypatch):
    """A ~/.netrc with a password for everything."""
    home = tmp_path / "home"
    home.mkdir()
    text = "machine 127.0.0.1 login me password hunter2\ndefault login me password hunter2\n"
    (home / ".netrc").write_text(text)
    (home / ".netrc").chmod(0o600)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("NETRC", str(home / ".netrc"))


@pytest.fixture
async def proxy(upstream):
    async with FakeProxy(ports={"registry.test": upstream.port}) as fake:
        yield fake


async def pull(mirror: Mirror) -> set[int]:
    paths = [MANIFEST, *(f"/v2/{REPO}/blobs/{digest}" for digest in APP.digests)]
    return {(await mirror.get(path)).status for path in paths}


def sent(registry: FakeRegistry) -> set[str]:
    return {seen.headers.get("Authorization", "") for seen in registry.seen}


@pytest.mark.usefixtures("netrc")
@pytest.mark.parametrize("token", [False, True])
async def test_netrc_is_sent_to_nobody(tmp_path, upstream, token):
    """Neither the registry, nor its token service, nor the storage that it redirects to."""
    upstream.add_image(REPO, APP, "1")
    async with FakeRegistry() as storage:
        for blob in APP.blobs:
            storage.add_blob(blob)
        upstream.redirect_blobs_to = lambda digest: f"{storage.url}/v2/x/blobs/{digest}?signed"
        if token:
            body = b'{"token": "let-me-in", "expires_in": 3600}'
            challenge = f'Bearer realm="{upstream.url}/token",service="fake"'
            upstream.faults.append(Fault(kind="ping", times=99, status=200, body=body))
            upstream.guard = lambda request, _: (
                None
                if request.headers.get("Authorization") == "Bearer let-me-in"
                else web.Response(status=401, headers={"WWW-Authenticate": challenge})
            )
        async with running(tmp_path / "cache", {"docker.io": upstream.url}) as mirror:
            assert await pull(mirror) == {200}
        assert sent(storage) == {""}
    assert sent(upstream) == ({"", "Bearer let-me-in"} if token else {""})


@pytest.mark.usefixtures("netrc")
async def test_netrc_is_not_sent_to_the_collector_of_spans(tmp_path, upstream):
    async with Collector() as collector:
        tracing = {"endpoint": collector.endpoint}
        upstreams = {"docker.io": upstream.url}
        async with running(tmp_path / "cache", upstreams, tracing=tracing) as mirror:
            await mirror.get("/v2/")
        assert collector.authorizations == {""}


async def test_spans_go_through_the_proxy_of_the_environment(tmp_path, upstream, monkeypatch):
    async with Collector() as collector:
        port = int(collector.endpoint.rpartition(":")[2])
        async with FakeProxy(ports={"collector.test": port}) as proxy:
            monkeypatch.setenv("HTTP_PROXY", f"127.0.0.1:{proxy.port}")
            tracing = {"endpoint": f"http://collector.test:{port}"}
            upstreams = {"docker.io": upstream.url}
            async with running(tmp_path / "cache", upstreams, tracing=tracing) as mirror:
                await mirror.get("/v2/")
        assert collector.spans
        assert set(proxy.asked) == {f"POST http://collector.test:{port}/v1/traces"}


@pytest.mark.parametrize("name", ["HTTP_PROXY", "http_proxy", "[fetch] proxy", "[upstreams] proxy"])
async def test_a_registry_is_asked_through_a_proxy(tmp_path, upstream, proxy, monkeypatch, name):
    """Its user and password are for the proxy alone."""
    upstream.add_image(REPO, APP, "1")
    address = f"http://me:hunter2@127.0.0.1:{proxy.port}"
    table, fetch = {"url": "http://registry.test"}, {}
    if name == "[fetch] proxy":
        fetch = {"proxy": address}
    elif name == "[upstreams] proxy":
        table["proxy"] = address
    else:
        monkeypatch.setenv(name, address.removeprefix("http://"))
    async with running(tmp_path / "cache", {"docker.io": table}, fetch=fetch) as mirror:
        assert await pull(mirror) == {200}
    assert f"GET http://registry.test{MANIFEST.rpartition('/')[0]}/{APP.digest}" in proxy.asked
    assert set(proxy.logins) == {LOGIN}
    assert len(proxy.logins) == len(proxy.asked)
    assert sent(upstream) == {""}
    assert not any("proxy-authorization" in map(str.lower, seen.headers) for seen in upstream.seen)


@pytest.mark.parametrize(
    "environment",
    [
        {"NO_PROXY": "*"},
        {"NO_PROXY": "203.0.113.0/24,*.elsewhere,*"},
        {"REQUEST_METHOD": "GET"},
        {},  # the loopback is never asked through a proxy
    ],
)
async def test_what_needs_no_proxy_is_asked_directly(
    tmp_path, upstream, proxy, monkeypatch, environment
):
    upstream.add_image(REPO, APP, "1")
    for key, value in {"HTTP_PROXY": f"http://127.0.0.1:{proxy.port}", **environment}.items():
        monkeypatch.setenv(key, value)
    async with running(tmp_path / "cache", {"docker.io": upstream.url}) as mirror:
        assert await pull(mirror) == {200}
    assert proxy.asked == []


async def test_each_redirect_is_decided_by_its_own_address(tmp_path, upstream, proxy, monkeypatch):
    upstream.add_image(REPO, APP, "1")
    async with FakeRegistry() as storage:
        for blob in APP.blobs:
            storage.add_blob(blob)
        upstream.redirect_blobs_to = lambda digest: f"{storage.url}/v2/x/blobs/{digest}"
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{proxy.port}")
        table = {"url": "http://registry.test", "private_redirects": True}
        async with running(tmp_path / "cache", {"docker.io": table}) as mirror:
            assert await pull(mirror) == {200}
        assert storage.count("blob") == len(APP.blobs)
    assert all(" http://registry.test/" in asked for asked in proxy.asked)


@pytest.mark.parametrize("target", ["127.0.0.1", "10.0.0.1", "2130706433", "localhost", "[::1]"])
async def test_no_proxy_leads_a_public_registry_to_a_private_address(
    tmp_path, upstream, proxy, target
):
    digest = upstream.add_blob(b"content")
    upstream.redirect_blobs_to = lambda _: f"http://{target}:9/v2/x/blobs/{digest}"
    fetch = {"proxy": f"http://127.0.0.1:{proxy.port}"}
    upstreams = {"docker.io": "http://registry.test"}
    async with running(tmp_path / "cache", upstreams, fetch=fetch) as mirror:
        answer = await mirror.get(f"/v2/{REPO}/blobs/{digest}")
    assert (answer.status, b"private_redirects allows it" in answer.body) == (502, True)
    assert all(" http://registry.test/" in asked for asked in proxy.asked)


async def test_a_registry_over_tls_is_asked_through_a_tunnel(tmp_path, monkeypatch):
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("registry.test").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    async with (
        FakeRegistry(tls=context) as upstream,
        FakeProxy(ports={"registry.test": upstream.port}) as proxy,
    ):
        upstream.add_image(REPO, APP, "1")
        monkeypatch.setenv("HTTPS_PROXY", f"me:hunter2@127.0.0.1:{proxy.port}")
        table = {"url": "https://registry.test", "ca_file": str(tmp_path / "ca.pem")}
        async with running(tmp_path / "cache", {"docker.io": table}) as mirror:
            assert await pull(mirror) == {200}
        assert set(proxy.asked) == {"CONNECT registry.test:443"}
        assert set(proxy.logins) == {LOGIN}
        assert sent(upstream) == {""}


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize(
    ("refusal", "said"), [(0, "cannot connect to the proxy"), (407, "wants user and password")]
)
async def test_an_error_names_the_proxy_and_no_password(
    tmp_path, proxy, monkeypatch, scheme, refusal, said
):
    proxy.refusal = refusal
    port = proxy.port if refusal else free_port()
    monkeypatch.setenv(f"{scheme.upper()}_PROXY", f"http://me:hunter2@127.0.0.1:{port}")
    async with running(tmp_path / "cache", {"docker.io": f"{scheme}://registry.test"}) as mirror:
        answer = await mirror.get(MANIFEST)
    assert answer.status == 502
    assert f"the proxy http://127.0.0.1:{port} ({scheme.upper()}_PROXY)" in answer.body.decode()
    assert said in answer.body.decode()
    assert b"hunter2" not in answer.body


async def test_an_answer_of_the_proxy_itself_names_it(tmp_path, proxy, monkeypatch):
    proxy.refusal = 503
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{proxy.port}")
    async with running(tmp_path / "cache", {"docker.io": "http://registry.test"}) as mirror:
        answer = await mirror.get(MANIFEST)
    assert answer.status == 502
    expected = f"http://registry.test through the proxy http://127.0.0.1:{proxy.port} (HTTP_PROXY)"
    assert f"{expected} answered 503" in answer.body.decode()


@pytest.mark.parametrize("address", ["socks5://me:hunter2@127.0.0.1:1080", "ftp://x", "http://"])
async def test_a_proxy_that_cannot_be_used_is_refused_at_the_start(
    tmp_path, upstream, monkeypatch, address
):
    monkeypatch.setenv("https_proxy", address)
    with pytest.raises(UserError) as told:
        async with running(tmp_path / "cache", {"docker.io": upstream.url}):
            pass
    (line,) = str(told.value).splitlines()
    assert line.startswith("https_proxy names ")
    assert "hunter2" not in line


@pytest.mark.long
async def test_the_proxy_is_named_at_the_start(tmp_path, upstream, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "me:hunter2@proxy.test:3128")
    process = MirrorProcess(tmp_path, {"docker.io": upstream.url})
    await asyncio.to_thread(process.start)
    await asyncio.to_thread(process.terminate)
    assert "through the proxy http://proxy.test:3128 (HTTPS_PROXY)\n" in process.output()
    assert "hunter2" not in process.output()
