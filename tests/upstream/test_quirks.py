"""Registries by family: each fake does what the real one is known for, and is pulled from."""

from collections.abc import Callable

import pytest
from aiohttp import web

from tests.fakes import FakeRegistry, Fault, image, random_bytes
from tests.fakes.office import basic
from tests.fakes.proxy import FakeProxy
from tests.running import Mirror, running
from tests.upstream.test_auth import serving

pytestmark = [pytest.mark.slow]

REPO = "team/app"
APP = image(random_bytes(10_000))
Family = Callable[[FakeRegistry, str, FakeRegistry], None]


def wants_token(registry: FakeRegistry, service: str, scope: str = "") -> None:
    def guard(request: web.BaseRequest, path: str) -> web.Response | None:
        if request.headers.get("Authorization") == f"Bearer repository:{REPO}:pull":
            return None
        repository = path.removeprefix("/v2/").rpartition("/")[0].rpartition("/")[0]
        named = scope or f"repository:{repository}:pull"
        challenge = f'Bearer realm="{service}/token",service="x",scope="{named}"'
        return web.Response(status=401, headers={"WWW-Authenticate": challenge})

    registry.guard = guard


async def issue(request: web.BaseRequest) -> web.Response:
    """A token service: the token is the scope that it is for."""
    scope = request.rel_url.query.get("scope", "")
    if scope != f"repository:{REPO}:pull":
        return web.Response(status=403)  # gcr.io gives none without a repository
    return web.json_response({"token": scope})


def docker_hub(registry: FakeRegistry, service: str, storage: FakeRegistry) -> None:
    """Counts GET of manifests, and redirects blobs to signed URLs of a CDN."""
    wants_token(registry, service)
    registry.redirect_blobs_to = lambda digest: f"{storage.url}/v2/x/blobs/{digest}?verify=a%2Bb"


def ghcr(registry: FakeRegistry, service: str, storage: FakeRegistry) -> None:
    """Names a placeholder scope."""
    wants_token(registry, service, "repository:user/image:pull")


def public_ecr(registry: FakeRegistry, service: str, storage: FakeRegistry) -> None:
    """Answers 401 to HEAD of blobs."""
    registry.faults.append(Fault(kind="blob", method="HEAD", times=99, status=401))


def ecr(registry: FakeRegistry, service: str, storage: FakeRegistry) -> None:
    """Basic; its storage refuses a second kind of authentication with 400."""

    def guard(request: web.BaseRequest, path: str) -> web.Response | None:
        known = request.headers.get("Authorization") == basic("AWS", "token")
        challenge = {"WWW-Authenticate": 'Basic realm="https://ecr.test/",service="ecr"'}
        return None if known else web.Response(status=401, headers=challenge)

    registry.guard = guard
    storage.guard = lambda request, path: (
        web.Response(status=400) if "Authorization" in request.headers else None
    )
    registry.redirect_blobs_to = lambda digest: f"{storage.url}/v2/x/blobs/{digest}?X-Amz-a=b"


def gar(registry: FakeRegistry, service: str, storage: FakeRegistry) -> None:
    """Redirects blobs to a relative address, and answers 404 to an unknown query."""

    def guard(request: web.BaseRequest, path: str) -> web.Response | None:
        if "ns=" in request.raw_path:
            return web.Response(status=404)
        if path.startswith(f"/v2/{REPO}/blobs/"):
            location = path.replace(REPO, "artifacts-downloads")
            return web.Response(status=302, headers={"Location": location})
        return None

    registry.guard = guard


def gitlab(registry: FakeRegistry, service: str, storage: FakeRegistry) -> None:
    """Redirects HEAD to an address that is signed for GET."""
    wants_token(registry, service)
    storage.faults.append(Fault(kind="blob", method="HEAD", times=99, status=403))
    registry.redirect_blobs_to = lambda digest: f"{storage.url}/v2/x/blobs/{digest}"


def artifactory(registry: FakeRegistry, service: str, storage: FakeRegistry) -> None:
    """Says that what is private does not exist."""

    def guard(request: web.BaseRequest, path: str) -> web.Response | None:
        known = request.headers.get("Authorization") == basic("AWS", "token")
        return None if known or path == "/v2/" else web.Response(status=404)

    registry.guard = guard


def nexus(registry: FakeRegistry, service: str, storage: FakeRegistry) -> None:
    """Forbids to anonymous clients what is private, and does not answer HEAD of manifests."""

    def guard(request: web.BaseRequest, path: str) -> web.Response | None:
        known = request.headers.get("Authorization") == basic("AWS", "token")
        return None if known or path == "/v2/" else web.Response(status=403)

    registry.guard = guard
    registry.faults.append(Fault(kind="manifest", method="HEAD", times=99, status=400))


def scarf(registry: FakeRegistry, service: str, storage: FakeRegistry) -> None:
    """lscr.io, cr.l5d.io: redirects to ghcr.io, which wants a token of its own."""
    storage.add_image(REPO, APP, "1")
    wants_token(storage, service)
    registry.guard = lambda request, path: web.Response(
        status=307, headers={"Location": f"{storage.url}{path}"}
    )


FAMILIES: dict[str, Family] = {
    "docker.io": docker_hub,
    "ghcr.io": ghcr,
    "public.ecr.aws": public_ecr,
    "1.dkr.ecr.eu-west-1.amazonaws.com": ecr,
    "europe-docker.pkg.dev": gar,
    "registry.gitlab.com": gitlab,
    "artifactory.example.com": artifactory,
    "nexus.example.com": nexus,
    "lscr.io": scarf,
}


@pytest.fixture(params=FAMILIES)
async def family(request, tmp_path, upstream):
    upstream.add_image(REPO, APP, "1")
    async with FakeRegistry(blobs=upstream.blobs) as storage, serving(issue) as service:
        FAMILIES[request.param](upstream, service, storage)
        table: dict[str, object] = {"url": upstream.url, "default": True}
        if FAMILIES[request.param] in {ecr, artifactory, nexus}:
            table |= {"username": "AWS", "password": "token"}
        others = {} if request.param == "docker.io" else {"docker.io": {"default": False}}
        async with running(tmp_path, {**others, request.param: table}) as mirror:
            yield mirror


async def test_each_family_is_pulled_from(family: Mirror):
    for method in ("HEAD", "GET"):
        answer = await family.get(f"/v2/{REPO}/manifests/1", method)
        assert (answer.status, answer.headers["Docker-Content-Digest"]) == (200, APP.digest)
        assert answer.headers["Content-Length"] == str(len(APP.manifest))
    for digest, blob in zip(APP.digests, APP.blobs, strict=True):
        head = await family.get(f"/v2/{REPO}/blobs/{digest}", "HEAD")
        assert (head.status, head.headers["Content-Length"]) == (200, str(len(blob)))
        assert (await family.get(f"/v2/{REPO}/blobs/{digest}")).body == blob


async def test_public_ecr_is_not_asked_for_heads_of_blobs(tmp_path, upstream):
    digest = upstream.add_blob(b"content")
    table = {"url": upstream.url}
    async with running(tmp_path, {"public.ecr.aws": table}) as mirror:
        head = await mirror.get(f"/v2/{REPO}/blobs/{digest}?ns=public.ecr.aws", "HEAD")
        assert (head.status, head.headers["Content-Length"]) == (200, "7")
    assert upstream.count("blob", "HEAD") == 0


@pytest.mark.parametrize(
    ("name", "life"),
    [
        ("1.dkr.ecr.eu-west-1.amazonaws.com", "ECR last 12 hours"),
        ("europe-docker.pkg.dev", "Google last an hour"),
        ("team.azurecr.io:443", "ACR last 3 hours"),
    ],
)
async def test_a_refused_password_that_does_not_last_is_told_so(tmp_path, upstream, name, life):
    challenge = {"WWW-Authenticate": 'Basic realm="x"'}
    upstream.guard = lambda request, path: web.Response(status=401, headers=challenge)
    table = {"url": upstream.url, "username": "me", "password": "old"}
    async with running(tmp_path, {name: table}) as mirror:
        answer = await mirror.get(f"/v2/{REPO}/manifests/1?ns={name}")
    assert (answer.status, life in answer.body.decode()) == (401, True)


@pytest.mark.parametrize("login", [{}, {"username": "me", "password": "old"}])
async def test_a_registry_is_known_by_its_host_too(tmp_path, upstream, login):
    """Such as a pull-through cache rule of ECR for Docker Hub."""
    host = "1.dkr.ecr.eu-west-1.amazonaws.com"
    challenge = {"WWW-Authenticate": 'Basic realm="x"'}
    upstream.guard = lambda request, path: web.Response(status=401, headers=challenge)
    async with FakeProxy(ports={host: upstream.port}) as proxy:
        table = {"url": f"http://{host}/v2/hub", "proxy": f"http://127.0.0.1:{proxy.port}"}
        async with running(tmp_path, {"docker.io": table | login}) as mirror:
            answer = await mirror.get(f"/v2/{REPO}/manifests/1")
    assert (answer.status, "the user AWS" in answer.body.decode()) == (401, bool(login))


async def test_google_refuses_a_repository_without_refusing_the_login(tmp_path, upstream):
    """Its token service gives no token without a repository, so that one proves nothing."""
    upstream.add_image(REPO, APP, "1")
    name = "europe-docker.pkg.dev"
    async with serving(issue) as service:
        wants_token(upstream, service)
        table = {"url": upstream.url, "username": "_json_key", "password": "key"}
        async with running(tmp_path, {name: table}) as mirror:
            for repository, status in (("theirs", 403), (REPO, 200), ("other", 403)):
                answer = await mirror.get(f"/v2/{repository}/manifests/1?ns={name}")
                assert answer.status == status
            for digest in APP.digests:
                assert (await mirror.get(f"/v2/{REPO}/blobs/{digest}?ns={name}")).status == 200


async def test_a_placeholder_scope_is_no_scope(tmp_path, upstream):
    """ghcr.io names it for /v2/, which is asked when a client logs in."""
    asked: list[str | None] = []

    async def bare(request: web.BaseRequest) -> web.Response:
        asked.append(request.rel_url.query.get("scope"))
        return web.json_response({"token": f"repository:{REPO}:pull"})

    async with serving(bare) as service:
        wants_token(upstream, service, "repository:user/image:pull")
        table = {"url": upstream.url, "client_credentials": True}
        async with running(tmp_path, {"docker.io": table}) as mirror:
            assert (await mirror.get("/v2/", Authorization=basic("me", "secret"))).status == 200
    assert asked == [None]
