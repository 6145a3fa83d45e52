"""A registry whose images are below a path: ``url = "https://harbor.example.com/v2/hub-proxy"``.

Harbor, Artifactory, ECR and GAR have several repositories of images in one registry, so that all
names begin with that of a project.
"""

import json
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from mirror.upstream.listings import TagStream
from mirror.upstream.responses import BlobStream
from tests.fakes import FakeRegistry, Fault, image, random_bytes
from tests.fakes.content import OCI_MANIFEST
from tests.fakes.office import Office, basic
from tests.proxy.clients import ask, trusting
from tests.running import Mirror, running
from tests.transfer import commands
from tests.upstream.test_auth import TokenService, serving

pytestmark = [pytest.mark.slow]

APP = image(random_bytes(200_000), random_bytes(100, 1))
ME = basic("me", "secret")
#: What the url says after the address of the registry, and the project that it means.
PATHS = {
    "/v2/hub-proxy": "hub-proxy",
    "/v2/hub-proxy/": "hub-proxy",
    "/v2/123456789012/docker-hub": "123456789012/docker-hub",
    "/v2/group/dependency_proxy/containers": "group/dependency_proxy/containers",
    "/v2/v2": "v2",
}


@asynccontextmanager
async def behind(directory, upstream: FakeRegistry, path="/v2/hub-proxy", **more):
    """A mirror whose Docker Hub is below a path of another registry."""
    table = {"url": upstream.url + path, **more}
    async with running(directory, {"docker.io": table}, tags={"max_age": "0s"}) as mirror:
        yield mirror


async def pull(mirror: Mirror, repository: str = "library/alpine", **fields: str) -> None:
    head = await mirror.get(f"/v2/{repository}/manifests/1", "HEAD", **fields)
    assert (head.status, head.headers["Docker-Content-Digest"]) == (200, APP.digest)
    manifest = await mirror.get(f"/v2/{repository}/manifests/1", **fields)
    assert (manifest.status, manifest.body) == (200, APP.manifest)
    for digest, blob in zip(APP.digests, APP.blobs, strict=True):
        answer = await mirror.get(f"/v2/{repository}/blobs/{digest}", **fields)
        assert (answer.status, answer.body) == (200, blob)


@pytest.mark.parametrize("path", PATHS)
async def test_images_are_pulled_from_below_the_path(tmp_path, upstream, path):
    project = PATHS[path]
    upstream.add_image(f"{project}/library/alpine", APP, "1")
    async with behind(tmp_path, upstream, path) as mirror:
        await pull(mirror)
        await pull(mirror, "docker.io/alpine")
        upstream.faults.append(Fault("", times=100, status=503))
        await pull(mirror)
    assert upstream.count("blob", "GET") == len(APP.blobs)
    assert all(seen.path.startswith(f"/v2/{project}/library/alpine/") for seen in upstream.seen)


@pytest.mark.parametrize("path", ["/v2", "/v2/"])
async def test_an_address_may_end_in_the_path_of_the_api(tmp_path, upstream, path):
    upstream.add_image("library/alpine", APP, "1")
    async with behind(tmp_path, upstream, path) as mirror:
        await pull(mirror)


async def test_a_path_may_be_on_both_sides_of_the_api(tmp_path, upstream):
    """The upstream is a mirror, and the images are in a project of its upstream."""
    upstream.add_image("hub-proxy/library/alpine", APP, "1")
    async with running(tmp_path / "first", {"docker.io": upstream.url}) as first:
        url = f"{first.url}/docker.io/v2/hub-proxy"
        async with running(tmp_path / "second", {"docker.io": url}) as second:
            await pull(second)


async def test_a_mirror_of_an_upstream_may_have_a_path_and_the_upstream_none(tmp_path, upstream):
    upstream.add_image("library/alpine", APP, "1")
    async with FakeRegistry() as nearby:
        nearby.add_image("team/hub/library/alpine", APP, "1")
        table = {"url": upstream.url, "mirrors": [f"{nearby.url}/v2/team/hub"]}
        async with running(tmp_path, {"docker.io": table}) as mirror:
            await pull(mirror)
            assert upstream.seen == []
            nearby.faults.append(Fault("", times=100, status=404))
            missing = await mirror.get("/v2/library/alpine/manifests/2")
            assert missing.status == 404
    assert {seen.path for seen in upstream.seen} == {"/v2/library/alpine/manifests/2"}


async def test_pages_of_tags_are_of_the_repository_that_the_client_knows(tmp_path, upstream):
    upstream.add_image("hub-proxy/library/alpine", APP, "a", "b", "c")
    names = []
    async with behind(tmp_path, upstream) as mirror:
        page = await mirror.get("/v2/library/alpine/tags/list?n=1")
        for _ in range(2):
            names.append(json.loads(page.body))
            link = page.headers["Link"]
            assert link.startswith("</v2/library/alpine/tags/list?")
            page = await mirror.get(link.partition(">")[0][1:])
        assert "Link" not in page.headers
    names.append(json.loads(page.body))
    assert names == [{"name": "library/alpine", "tags": [tag]} for tag in "abc"]


@pytest.mark.parametrize("first", [True, False])
async def test_a_list_of_tags_over_16_mib_has_the_name_that_the_client_knows(tmp_path, first):
    tags = [f"{number:0100}" for number in range(170_000)]
    fields = {"name": "hub-proxy/library/alpine", "tags": tags}
    body = json.dumps(dict(sorted(fields.items(), reverse=not first))).encode()
    async with FakeRegistry() as upstream:
        upstream.guard = lambda *_: web.Response(body=body, content_type="application/json")
        async with behind(tmp_path, upstream) as mirror:
            answer = await mirror.get("/v2/library/alpine/tags/list")
    assert json.loads(answer.body) == {"name": "library/alpine", "tags": tags}


class Arriving(BlobStream):
    """A body in pieces of one size."""

    def __init__(self, body: bytes, size: int) -> None:
        self.total = len(body)
        self._pieces = [body[start : start + size] for start in range(0, len(body), size)]

    async def read(self) -> bytes:
        return self._pieces.pop(0) if self._pieces else b""


@pytest.mark.parametrize("space", ["", " ", "\n\t" * 16])
async def test_the_name_is_found_wherever_the_pieces_of_a_list_end(space):
    body = f'{{"tags":["name"],"name"{space}:{space}"hub-proxy/app"}}'.encode()
    for size in range(1, len(body) + 1):
        stream, arrived = TagStream(Arriving(body, size), "hub-proxy/"), b""
        while piece := await stream.read():
            arrived += piece
        assert arrived == body.replace(b"hub-proxy/", b"")


async def test_referrers_are_found_below_the_path(tmp_path, upstream):
    signature = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "artifactType": "text/x",
            "subject": {"mediaType": OCI_MANIFEST, "digest": APP.digest, "size": 1},
        }
    ).encode()
    digest = upstream.add_manifest("hub-proxy/library/alpine", signature, OCI_MANIFEST)
    async with behind(tmp_path, upstream) as mirror:
        answer = await mirror.get(f"/v2/library/alpine/referrers/{APP.digest}")
    assert [each["digest"] for each in json.loads(answer.body)["manifests"]] == [digest]


async def test_a_redirect_to_another_path_of_the_registry_is_followed(tmp_path, upstream):
    upstream.add_image("hub-proxy/library/alpine", APP, "1")
    digest = APP.digests[0]
    moved = f"/v2/hub-proxy/library/alpine/blobs/{digest}?from=old"
    upstream.faults.append(Fault("blob", redirect=moved))
    async with behind(tmp_path, upstream) as mirror:
        answer = await mirror.get(f"/v2/library/alpine/blobs/{digest}")
        assert answer.body == APP.blobs[0]
    asked = f"/v2/hub-proxy/library/alpine/blobs/{digest}"
    assert [seen.path for seen in upstream.seen] == [asked, moved]


async def test_a_token_is_for_the_repository_as_the_registry_knows_it(tmp_path, upstream):
    service = TokenService()
    async with serving(service.answer) as service.url:
        upstream.add_image("hub-proxy/library/alpine", APP, "1")
        upstream.guard = service.guard()
        async with behind(tmp_path, upstream) as mirror:
            await pull(mirror)
    scopes = {query["scope"] for query, _ in service.calls}
    assert scopes == {"repository:hub-proxy/library/alpine:pull"}


@asynccontextmanager
async def private(upstream: FakeRegistry, *, bearer: bool):
    office = Office(upstream, bearer=bearer)
    office.add("hub-proxy/library/alpine", APP, ME)
    async with serving(office.issue) as realm:
        office.realm = realm
        yield


@pytest.mark.parametrize("bearer", [False, True])
async def test_private_images_are_pulled_with_the_mirrors_account(tmp_path, upstream, bearer):
    login = {"username": "me", "password": "secret"}
    async with (
        private(upstream, bearer=bearer),
        behind(tmp_path, upstream, **login) as mirror,
    ):
        await pull(mirror)


@pytest.mark.parametrize("bearer", [False, True])
async def test_private_images_are_pulled_with_the_accounts_of_clients(tmp_path, upstream, bearer):
    async with (
        private(upstream, bearer=bearer),
        behind(tmp_path, upstream, client_credentials=True) as mirror,
    ):
        assert (await mirror.get("/v2/library/alpine/manifests/1")).status == 401
        assert (await mirror.get("/v2/", Authorization=ME)).status == 200
        await pull(mirror, Authorization=ME)
        wrong = basic("me", "guess")
        refused = await mirror.get("/v2/library/alpine/manifests/1", Authorization=wrong)
        assert refused.status == 401
    assert any(seen.path == "/v2/" for seen in upstream.seen)


async def test_what_is_missing_is_named_as_the_registry_knows_it(tmp_path, upstream):
    async with behind(tmp_path, upstream) as mirror:
        answer = await mirror.get("/v2/library/alpine/manifests/1")
    assert answer.status == 404
    assert "hub-proxy/library/alpine" in json.loads(answer.body)["errors"][0]["message"]


async def test_in_proxy_mode_pulls_work_and_pushes_are_refused(tmp_path, upstream):
    """No challenge is passed on: the client would ask for a token for another repository."""
    async with private(upstream, bearer=True):
        table = {"url": f"{upstream.url}/v2/hub-proxy", "username": "me", "password": "secret"}
        proxy = {"listen": "127.0.0.1:0"}
        async with running(tmp_path, {"docker.io": table}, proxy=proxy) as mirror:
            trust, hub = trusting(tmp_path), "https://registry-1.docker.io"
            assert (await ask(mirror, trust, f"{hub}/v2/")).status == 200
            url = f"{hub}/v2/library/alpine"
            assert (await ask(mirror, trust, f"{url}/manifests/1")).body == APP.manifest
            for digest, blob in zip(APP.digests, APP.blobs, strict=True):
                assert (await ask(mirror, trust, f"{url}/blobs/{digest}")).body == blob
                assert (await ask(mirror, trust, f"{url}/blobs/{digest}", "HEAD")).status == 200
            seen = len(upstream.seen)
            push = await ask(mirror, trust, f"{url}/blobs/uploads/", "POST")
            assert len(upstream.seen) == seen
    assert push.status == 403
    error = json.loads(push.body)["errors"][0]
    assert error["code"] == "DENIED"
    assert f"only pulls are passed on to {upstream.url}/v2/hub-proxy/" in error["message"]


@pytest.mark.long
async def test_the_commands_pull_and_export_such_images(tmp_path, upstream):
    upstream.add_image("hub-proxy/library/alpine", APP, "1")
    config = commands.configured(tmp_path, {"docker.io": f"{upstream.url}/v2/hub-proxy"})
    for arguments in (["warm"], ["export", "--output", tmp_path / "alpine.tar"]):
        ended = await commands.mirror(*arguments, "--config", config, "alpine:1")
        assert ended.code == 0, ended.err
    assert (tmp_path / "alpine.tar").stat().st_size > len(APP.blobs[1])
