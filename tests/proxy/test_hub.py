"""Docker Hub by the name that crane, kaniko, ko, Tekton and Trivy use for it: index.docker.io."""

import json
import ssl
from contextlib import AsyncExitStack

import pytest
import trustme
from aiohttp import web

from tests.fakes import FakeRegistry, image
from tests.fakes.proxy import FakeProxy
from tests.proxy.clients import ask, connected, trusting
from tests.running import running

pytestmark = [pytest.mark.slow]

INDEX = "https://index.docker.io"
REGISTRY = "https://registry-1.docker.io"
WEBSITE = "https://registry.hub.docker.com"
APP = image(b"layer")
IMAGE = "/v2/library/alpine/manifests/1"
SEARCH = "/v1/search?q=alpine&n=25"
PAGES = ("/v2/repositories/library/alpine/tags", "/v2/repositories/library/alpine/tags/1")
PROXY = {"listen": "127.0.0.1:0"}


async def test_images_come_from_the_cache_under_all_names(tmp_path, upstream):
    upstream.add_image("library/alpine", APP, "1")
    tags = {"max_age": "1h"}
    async with running(tmp_path, {"docker.io": upstream.url}, proxy=PROXY, tags=tags) as mirror:
        trust = trusting(tmp_path)
        assert (await ask(mirror, trust, f"{INDEX}/v2/")).status == 200
        assert (await ask(mirror, trust, INDEX + IMAGE)).body == APP.manifest
        for digest, blob in zip(APP.digests, APP.blobs, strict=True):
            answer = await ask(mirror, trust, f"{INDEX}/v2/library/alpine/blobs/{digest}")
            assert answer.body == blob
        asked = len(upstream.seen)
        for host in (INDEX, REGISTRY, WEBSITE, f"{INDEX}:443"):
            answer = await ask(mirror, trust, host + IMAGE)
            assert (answer.body, answer.headers["Cache-Status"]) == (APP.manifest, "mirror; hit")
        assert len(upstream.seen) == asked


async def test_other_requests_are_passed_on_to_the_registry_of_the_configuration(
    tmp_path, upstream
):
    upstream.guard = lambda request, _: web.json_response({"path": request.raw_path})
    async with running(tmp_path, {"docker.io": upstream.url}, proxy=PROXY) as mirror:
        answer = await ask(mirror, trusting(tmp_path), INDEX + SEARCH)
    assert answer.status == 200
    (seen,) = upstream.seen
    assert (seen.path, seen.headers["Host"]) == (SEARCH, "index.docker.io")


async def test_a_manifest_that_a_client_asks_for_by_head_is_there_offline(tmp_path, upstream):
    """Such as the image of a signature that notation verifies."""
    upstream.add_image("library/alpine", APP, "1")
    digest = f"{REGISTRY}/v2/library/alpine/manifests/{APP.digest}"
    async with running(tmp_path, {"docker.io": upstream.url}, proxy=PROXY) as mirror:
        trust, accept = trusting(tmp_path), {"headers": {"Accept": APP.media_type}}
        for _ in range(2):
            head = await ask(mirror, trust, digest, "HEAD", **accept)
            assert (head.status, head.headers["Content-Length"]) == (200, str(len(APP.manifest)))
        assert upstream.count("manifest", "GET") == 1
        await upstream.stop()
        for method, body in (("HEAD", b""), ("GET", APP.manifest)):
            answer = await ask(mirror, trust, digest, method, **accept)
            assert (answer.status, answer.body) == (200, body)
    await upstream.start()


@pytest.mark.parametrize("page", PAGES)
async def test_the_api_of_the_website_is_not_taken_for_images(tmp_path, upstream, page):
    upstream.guard = lambda request, _: web.json_response({"path": request.raw_path})
    async with running(tmp_path, {"docker.io": upstream.url}, proxy=PROXY) as mirror:
        answer = await ask(mirror, trusting(tmp_path), WEBSITE + page)
    assert json.loads(answer.body) == {"path": page}


async def test_other_requests_go_to_the_host_that_the_client_named(tmp_path):
    """The hosts of Docker Hub have the same images, but only one of them can search."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    async with AsyncExitStack() as stack:
        hosts = {}
        for host in ("index.docker.io", "registry-1.docker.io", "registry.hub.docker.com"):
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            authority.issue_cert(host).configure_cert(context)
            hosts[host] = await stack.enter_async_context(FakeRegistry(tls=context))
            hosts[host].guard = lambda _, __: web.Response(status=202)
        ports = {host: registry.port for host, registry in hosts.items()}
        parent = await stack.enter_async_context(FakeProxy(ports=ports))
        hub = {
            "url": REGISTRY,
            "ca_file": str(tmp_path / "ca.pem"),
            "proxy": f"http://127.0.0.1:{parent.port}",
        }
        mirror = await stack.enter_async_context(
            running(tmp_path / "cache", {"docker.io": hub}, proxy=PROXY)
        )
        trust = trusting(tmp_path / "cache")
        uploads = "/v2/me/app/blobs/uploads/"
        for host in (INDEX, REGISTRY, WEBSITE):
            assert (await ask(mirror, trust, host + SEARCH)).status == 202
            assert (await ask(mirror, trust, host + uploads, "POST")).status == 202
        for host, registry in hosts.items():
            seen = [(each.method, each.path, each.headers["Host"]) for each in registry.seen]
            assert seen == [("GET", SEARCH, host), ("POST", uploads, host)]


async def test_a_configuration_without_the_name_leaves_it_alone(tmp_path, upstream):
    table = {"url": upstream.url, "aliases": []}
    proxy = {**PROXY, "allow": ["elsewhere.test"]}
    async with (
        running(tmp_path, {"docker.io": table}, proxy=proxy) as mirror,
        connected(mirror) as raw,
    ):
        told = await raw.connect("index.docker.io:443")
    assert "403" in told
    assert "opens no tunnel to index.docker.io:443" in told
