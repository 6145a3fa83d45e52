"""Who the mirror is to an upstream, and where its credentials must never turn up."""

import asyncio
import base64
import json
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import pytest
import trustme
from aiohttp import web
from multidict import CIMultiDict

from mirror.upstream.token_service import parse_token
from tests.fakes import FakeRegistry, image, random_bytes
from tests.running import configured, running

pytestmark = [pytest.mark.slow]

PASSWORD = "correct-horse"
BASIC = "Basic " + base64.b64encode(f"me:{PASSWORD}".encode()).decode()
REPO = "library/app"


@dataclass
class TokenService:
    """Issues numbered tokens; ``good`` are those that the registry takes."""

    calls: list[tuple[dict[str, str], str | None]] = field(default_factory=list)
    good: set[str] = field(default_factory=set)
    expires_in: object = 300
    issues_good: bool = True
    status: int = 200
    url: str = ""

    async def answer(self, request: web.BaseRequest) -> web.Response:
        self.calls.append((dict(request.rel_url.query), request.headers.get("Authorization")))
        await asyncio.sleep(0.02)
        token = f"token-{len(self.calls)}"
        if self.issues_good:
            self.good.add(token)
        body = {"token": token, "expires_in": self.expires_in}
        return web.json_response(body, status=self.status)

    def guard(self, scope: str = "") -> Callable[[web.BaseRequest, str], web.Response | None]:
        challenge = f'Bearer realm="{self.url}/token",service="registry.test"{scope}'

        def guard(request: web.BaseRequest, path: str) -> web.Response | None:
            header = request.headers.get("Authorization", "")
            if header.removeprefix("Bearer ") in self.good:
                return None
            return web.Response(status=401, headers={"WWW-Authenticate": challenge})

        return guard


@asynccontextmanager
async def serving(answer) -> AsyncIterator[str]:
    """A little HTTP server; yields its address."""
    runner = web.ServerRunner(web.Server(answer), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@pytest.fixture
async def tokens() -> AsyncIterator[TokenService]:
    service = TokenService()
    async with serving(service.answer) as service.url:
        yield service


@pytest.fixture
def app(upstream: FakeRegistry):
    content = image(random_bytes(100_000))
    upstream.add_image(REPO, content, "1")
    return content


async def pull(mirror, content) -> list[int]:
    """Manifest by tag, then every blob at once; the statuses."""
    manifest = await mirror.get(f"/v2/{REPO}/manifests/1")
    names = [f"/v2/{REPO}/blobs/{blob['digest']}" for blob in _blobs(content)]
    blobs = await asyncio.gather(*(mirror.get(name) for name in names))
    return [answer.status for answer in (manifest, *blobs)]


def _blobs(content) -> list[dict[str, str]]:
    document = json.loads(content.manifest)
    return [document["config"], *document["layers"]]


async def test_an_anonymous_token_is_fetched_once_per_scope(mirror, upstream, tokens, app):
    upstream.guard = tokens.guard()
    assert await pull(mirror, app) == [200, 200, 200]
    asked = {"service": "registry.test", "scope": f"repository:{REPO}:pull"}
    assert tokens.calls == [(asked, None)]


async def test_one_token_call_however_many_ask_at_once(mirror, upstream, tokens):
    upstream.guard = tokens.guard()
    digests = [upstream.add_blob(random_bytes(1000, seed)) for seed in range(20)]
    answers = await asyncio.gather(
        *(mirror.get(f"/v2/{REPO}/blobs/{digest}") for digest in digests)
    )
    assert {answer.status for answer in answers} == {200}
    assert len(tokens.calls) == 1


async def test_the_scope_is_ours_whatever_placeholder_the_challenge_has(
    mirror, upstream, tokens, app
):
    """ghcr.io challenges with repository:user/image:pull."""
    upstream.guard = tokens.guard(',scope="repository:user/image:pull"')
    assert await pull(mirror, app) == [200, 200, 200]
    assert tokens.calls[0][0]["scope"] == f"repository:{REPO}:pull"


async def test_a_token_that_upstream_refuses_is_replaced_once(mirror, upstream, tokens, app):
    upstream.guard = tokens.guard()
    await mirror.get(f"/v2/{REPO}/manifests/1")
    tokens.good.clear()
    assert await pull(mirror, app) == [200, 200, 200]
    assert len(tokens.calls) == 2


async def test_a_token_is_not_used_past_its_time(mirror, upstream, tokens, app):
    tokens.expires_in = 1
    upstream.guard = tokens.guard()
    await mirror.get(f"/v2/{REPO}/manifests/1")
    await asyncio.sleep(1)
    tokens.expires_in = 300
    assert await pull(mirror, app) == [200, 200, 200]
    assert len(tokens.calls) == 2


async def test_an_upstream_that_takes_no_token_is_401_without_a_challenge(
    mirror, upstream, tokens, app
):
    """As Docker Hub answers for what is private or does not exist."""
    challenge = {"WWW-Authenticate": f'Bearer realm="{tokens.url}/token"'}
    upstream.guard = lambda request, path: web.Response(status=401, headers=challenge)
    answer = await mirror.get(f"/v2/{REPO}/manifests/1")
    assert answer.status == 401
    assert "WWW-Authenticate" not in answer.headers
    assert json.loads(answer.body)["errors"][0]["code"] == "UNAUTHORIZED"
    assert len(tokens.calls) == 1


@pytest.mark.parametrize(("status", "expected"), [(401, 401), (403, 403), (500, 502)])
async def test_a_token_service_that_refuses_is_told_plainly(
    mirror, upstream, tokens, app, status, expected
):
    upstream.guard = tokens.guard()
    tokens.status = status
    answer = await mirror.get(f"/v2/{REPO}/manifests/1")
    assert answer.status == expected
    assert "token" in json.loads(answer.body)["errors"][0]["message"]


def with_credentials(upstream: FakeRegistry) -> dict[str, object]:
    table = {"url": upstream.url, "username": "me", "password": PASSWORD}
    return {"docker.io": table}


async def test_credentials_are_exchanged_for_a_token(tmp_path, upstream, tokens, app):
    upstream.guard = tokens.guard()
    async with running(tmp_path, with_credentials(upstream)) as mirror:
        assert await pull(mirror, app) == [200, 200, 200]
    assert [authorization for _, authorization in tokens.calls] == [BASIC]
    sent = {seen.headers.get("Authorization") for seen in upstream.seen}
    assert sent == {None, "Bearer token-1"}


async def test_a_registry_with_basic_authentication(tmp_path, upstream, app):
    def guard(request: web.BaseRequest, path: str) -> web.Response | None:
        if request.headers.get("Authorization") == BASIC:
            return None
        return web.Response(status=401, headers={"WWW-Authenticate": 'Basic realm="private"'})

    upstream.guard = guard
    async with running(tmp_path / "with", with_credentials(upstream)) as mirror:
        assert await pull(mirror, app) == [200, 200, 200]
    async with running(tmp_path / "without", {"docker.io": upstream.url}) as mirror:
        assert (await mirror.get(f"/v2/{REPO}/manifests/1")).status == 401


async def test_over_plain_http_no_other_host_is_given_credentials(tmp_path, upstream, tokens, app):
    tokens.url = tokens.url.replace("127.0.0.1", "localhost")
    upstream.guard = tokens.guard()
    async with running(tmp_path, with_credentials(upstream)) as mirror:
        answer = await mirror.get(f"/v2/{REPO}/manifests/1")
    assert answer.status == 502
    assert "cannot be trusted" in json.loads(answer.body)["errors"][0]["message"]
    assert tokens.calls == []


@asynccontextmanager
async def behind_tls(directory) -> AsyncIterator[tuple[FakeRegistry, dict[str, object]]]:
    """A registry with TLS, and the table of an upstream with a password for it."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(directory / "ca.pem"))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    async with FakeRegistry(tls=context) as registry:
        own = {"url": registry.url, "username": "me", "password": PASSWORD}
        yield registry, {"docker.io": {**own, "ca_file": str(directory / "ca.pem")}}


async def test_a_registry_with_tls_that_names_http_is_asked_over_tls(tmp_path):
    """It is behind a server that adds TLS, and does not know of it."""
    app = image(random_bytes(100_000))
    async with behind_tls(tmp_path) as (registry, table):
        registry.add_image(REPO, app, "1")
        service = TokenService(url=f"http://127.0.0.1:{registry.port}")
        wants, given = service.guard(), list[str]()

        def guard(request: web.BaseRequest, path: str) -> web.Response | None:
            if path != "/token":
                return wants(request, path)
            given.append(request.headers["Authorization"])
            service.good.add("t")
            return web.json_response({"token": "t"})

        registry.guard = guard
        async with running(tmp_path / "cache", table) as mirror:
            assert await pull(mirror, app) == [200, 200, 200]
    assert given == [BASIC]


async def test_no_password_for_a_registry_with_tls_leaves_without_tls(tmp_path, tokens):
    async with behind_tls(tmp_path) as (registry, table):
        registry.guard = tokens.guard()
        async with running(tmp_path / "cache", table) as mirror:
            answer = await mirror.get(f"/v2/{REPO}/manifests/1")
    assert (answer.status, tokens.calls) == (502, [])


async def test_a_cdn_never_sees_authorization_and_gets_the_address_byte_for_byte(
    tmp_path, upstream, tokens, app
):
    seen: list[tuple[str, str | None]] = []

    async def cdn(request: web.BaseRequest) -> web.Response:
        seen.append((request.raw_path, request.headers.get("Authorization")))
        digest = request.path.rpartition("/")[2]
        return web.Response(body=upstream.blobs[digest])

    signed = "?Signature=a%2Fb%2bc~d&Expires=1&x=%7E"
    upstream.guard = tokens.guard()
    async with serving(cdn) as url, running(tmp_path, with_credentials(upstream)) as mirror:
        upstream.redirect_blobs_to = lambda digest: f"{url}/data/{digest}{signed}"
        assert await pull(mirror, app) == [200, 200, 200]
    expected = {f"/data/{blob['digest']}{signed}" for blob in _blobs(app)}
    assert {path for path, _ in seen} == expected
    assert {authorization for _, authorization in seen} == {None}


async def test_no_secret_in_log_metrics_or_error(tmp_path, upstream, tokens, app, caplog):
    caplog.set_level("DEBUG")
    upstream.guard = tokens.guard()
    async with running(tmp_path, with_credentials(upstream)) as mirror:
        await pull(mirror, app)
        tokens.status = 500
        tokens.good.clear()
        error = await mirror.get(f"/v2/{REPO}/manifests/2")
        metrics = await mirror.get("/metrics")
    told = caplog.text + error.body.decode() + metrics.body.decode()
    for secret in (PASSWORD, BASIC, "token-1"):
        assert secret not in told


@pytest.mark.parametrize(
    ("location", "word"),
    [
        ("/v2/library/app/blobs/{digest}", "redirects"),
        ("ftp://127.0.0.1/x", "without http or https"),
        ("http://[", "an invalid address"),
    ],
)
async def test_a_redirect_that_leads_nowhere_is_502(mirror, upstream, location, word):
    digest = upstream.add_blob(b"content")
    upstream.redirect_blobs_to = lambda digest: location.format(digest=digest)
    answer = await mirror.get(f"/v2/{REPO}/blobs/{digest}")
    assert answer.status == 502
    assert word in json.loads(answer.body)["errors"][0]["message"]


@pytest.mark.parametrize("hops", [1, 10])
async def test_as_many_redirects_are_followed_as_go_follows(mirror, upstream, hops):
    digest = upstream.add_blob(b"content")

    def guard(request: web.BaseRequest, path: str) -> web.Response | None:
        hop = int(request.rel_url.query.get("hop", 0))
        location = {"Location": f"?hop={hop + 1}"}
        return None if hop == hops else web.Response(status=302, headers=location)

    upstream.guard = guard
    assert (await mirror.get(f"/v2/{REPO}/blobs/{digest}")).body == b"content"


@pytest.mark.parametrize(
    ("query", "sent"),
    [("name=a b", "name=a%20b"), ("name=\u00e4", "name=%C3%A4"), ("s=a%2fb+%20&", "s=a%2fb+%20&")],
)
async def test_only_what_no_address_may_have_is_escaped_in_a_redirect(
    mirror, upstream, query, sent
):
    """Storage may be told a file name with spaces, beside a signature."""
    digest = upstream.add_blob(b"content")

    def guard(request: web.BaseRequest, path: str) -> web.Response | None:
        location = {"Location": f"{path}?{query}"}
        return None if request.query_string else web.Response(status=302, headers=location)

    upstream.guard = guard
    assert (await mirror.get(f"/v2/{REPO}/blobs/{digest}")).body == b"content"
    assert upstream.seen[-1].path.endswith(f"?{sent}")


# What upstream refuses to the mirror itself is remembered.

REMEMBERING = {"max_age": "1h", "negative_max_age": "1h"}
MISSING = image(b"missing")
THINGS = [
    ("HEAD", "manifests/1"),
    ("GET", "manifests/1"),
    ("GET", f"manifests/{MISSING.digest}"),
    ("GET", f"blobs/{MISSING.digests[0]}"),
    ("HEAD", f"blobs/{MISSING.digests[1]}"),
    ("GET", "tags/list"),
    ("GET", f"referrers/{MISSING.digest}"),
]


@pytest.mark.parametrize(("status", "code"), [(401, "UNAUTHORIZED"), (403, "DENIED")])
@pytest.mark.parametrize(("method", "thing"), THINGS)
async def test_a_refusal_is_remembered_without_another_token(
    tmp_path, upstream, tokens, status, code, method, thing
):
    """Docker Hub answers 401 for what is missing, with any token."""
    challenge = f'Bearer realm="{tokens.url}/token",service="registry.test"'

    def guard(request: web.BaseRequest, path: str) -> web.Response:
        refused = status if "Authorization" in request.headers else 401
        return web.Response(status=refused, headers={"WWW-Authenticate": challenge})

    upstream.guard = guard
    async with running(tmp_path, {"docker.io": upstream.url}, tags=REMEMBERING) as mirror:
        for _ in range(10):
            answer = await mirror.get(f"/v2/{REPO}/{thing}", method)
            assert answer.status == status
            assert "WWW-Authenticate" not in answer.headers
            if method == "GET":
                assert json.loads(answer.body)["errors"][0]["code"] == code
    by_get = "manifests/1" in thing or (method, status) == ("HEAD", 401)
    assert len(upstream.seen) == 3 if by_get else 2, "without a token, with one, and by GET"
    assert len(tokens.calls) == 1


async def test_a_token_service_that_refuses_is_not_asked_again(tmp_path, upstream, tokens):
    upstream.guard = tokens.guard()
    tokens.status = 401
    async with running(tmp_path, {"docker.io": upstream.url}, tags=REMEMBERING) as mirror:
        for method in ("HEAD", "GET") * 5:
            assert (await mirror.get(f"/v2/{REPO}/manifests/1", method)).status == 401
    assert (len(upstream.seen), len(tokens.calls)) == (1, 1)


async def test_a_refusal_is_forgotten_after_negative_max_age(tmp_path, upstream, app):
    upstream.guard = lambda request, path: web.Response(status=401)
    tags = {"negative_max_age": "0s"}
    async with running(tmp_path, {"docker.io": upstream.url}, tags=tags) as mirror:
        assert (await mirror.get(f"/v2/{REPO}/manifests/1")).status == 401
        upstream.guard = None
        assert (await mirror.get(f"/v2/{REPO}/manifests/1")).status == 200


async def test_other_credentials_in_the_configuration_make_it_ask_again(tmp_path, upstream, app):
    def guard(request: web.BaseRequest, path: str) -> web.Response | None:
        known = request.headers.get("Authorization") == BASIC
        challenge = {"WWW-Authenticate": 'Basic realm="x"'}
        return None if known else web.Response(status=401, headers=challenge)

    upstream.guard = guard
    table = {"url": upstream.url, "username": "me", "password": "old"}
    async with running(tmp_path, {"docker.io": table}, tags=REMEMBERING) as mirror:
        for _ in range(3):
            assert (await mirror.get(f"/v2/{REPO}/manifests/1")).status == 401
        assert upstream.count("manifest") == 2
        table["password"] = PASSWORD
        await mirror.reload(configured(tmp_path, {"docker.io": table}, tags=REMEMBERING))
        assert (await mirror.get(f"/v2/{REPO}/manifests/1")).body == app.manifest


async def test_a_client_with_credentials_of_its_own_has_answers_of_its_own(tmp_path, upstream, app):
    good: set[str] = set()

    def guard(request: web.BaseRequest, path: str) -> web.Response | None:
        known = request.headers.get("Authorization") in good
        challenge = {"WWW-Authenticate": 'Basic realm="x"'}
        return None if known else web.Response(status=401, headers=challenge)

    upstream.guard = guard
    table = {"url": upstream.url, "client_credentials": True}
    async with running(tmp_path, {"docker.io": table}, tags=REMEMBERING) as mirror:
        path = f"/v2/{REPO}/manifests/1"
        assert (await mirror.get(path)).status == 401
        assert (await mirror.get(path, Authorization=BASIC)).status == 401
        good.add(BASIC)  # let in since
        assert (await mirror.get(path, Authorization=BASIC)).body == app.manifest
        asked = upstream.count("manifest")
        assert (await mirror.get(path)).status == 401, "the mirror itself is still refused"
        assert upstream.count("manifest") == asked


# Tokens, as services issue them and registries take them.


@pytest.mark.parametrize("expires_in", [None, "300", 299.5, "1e2", "soon", True, [], 0, -1, "NaN"])
async def test_a_token_is_used_whatever_its_time_is_written_like(
    mirror, upstream, tokens, app, expires_in
):
    tokens.expires_in = expires_in
    upstream.guard = tokens.guard()
    assert await pull(mirror, app) == [200, 200, 200]
    assert len(tokens.calls) == 1


@pytest.mark.parametrize("expires_in", ["0", "-300", "null", "true"])
def test_a_token_that_lasts_no_time_is_used_for_the_default_time(expires_in):
    """Services write 0 where they do not know the time."""
    body = f'{{"token": "T", "expires_in": {expires_in}}}'.encode()
    assert parse_token(body) == ("T", 60)


CHALLENGES = {
    "a relative address": ['Bearer realm="/token",service="x"'],
    "no quotes": ["Bearer realm={url}/token,service=x"],
    "upper case": ['BEARER REALM="{url}/token",SERVICE="x"'],
    "spaces for commas": ['Bearer  realm = "{url}/token"  service="x"'],
    "other schemes before it": [
        'Negotiate, NTLM TlRM=, Basic realm="a, b", Bearer realm="{url}/token"'
    ],
    "fields of their own": ['Basic realm="x"', 'Bearer realm="{url}/token"'],
    "one without an address": ['Bearer service="x"', 'Bearer realm="{url}/token"'],
    "two of the same": ['Bearer realm="{url}/token"', 'Bearer realm="{url}/none"'],
    "a query": ['Bearer realm="{url}/token?account=a%2Fb"'],
}


@pytest.mark.parametrize("case", CHALLENGES)
async def test_a_challenge_is_understood_however_it_is_written(mirror, upstream, app, case):
    def guard(request: web.BaseRequest, path: str) -> web.Response | None:
        if path == "/token":
            scope = request.rel_url.query["scope"]
            return web.json_response({"access_token": f"{scope}\n", "token": ""}, status=201)
        if request.headers.get("Authorization") == f"Bearer repository:{REPO}:pull":
            return None
        fields = (("WWW-Authenticate", each.format(url=upstream.url)) for each in CHALLENGES[case])
        return web.Response(status=401, headers=CIMultiDict(fields))

    upstream.guard = guard
    assert await pull(mirror, app) == [200, 200, 200]
    assert sum("/token" in seen.path for seen in upstream.seen) == 1


async def test_a_challenge_for_no_token_service_leaves_the_password(tmp_path, upstream, app):
    def guard(request: web.BaseRequest, path: str) -> web.Response | None:
        fields = [("WWW-Authenticate", "Bearer"), ("WWW-Authenticate", 'Basic realm="x"')]
        known = request.headers.get("Authorization") == BASIC
        return None if known else web.Response(status=401, headers=CIMultiDict(fields))

    upstream.guard = guard
    async with running(tmp_path, with_credentials(upstream)) as mirror:
        assert await pull(mirror, app) == [200, 200, 200]


@pytest.mark.parametrize("status", [400, 401, 403])
async def test_an_outdated_token_is_renewed_once_however_it_is_refused(
    tmp_path, upstream, tokens, app, status
):
    challenge = f'Bearer realm="{tokens.url}/token"'

    def guard(request: web.BaseRequest, path: str) -> web.Response | None:
        header = request.headers.get("Authorization", "")
        if header.removeprefix("Bearer ") in tokens.good:
            return None
        if header:
            return web.Response(status=status)
        return web.Response(status=401, headers={"WWW-Authenticate": challenge})

    upstream.guard = guard
    tags = {"max_age": "0s", "negative_max_age": "0s"}
    async with running(tmp_path, {"docker.io": upstream.url}, tags=tags) as mirror:
        assert (await mirror.get(f"/v2/{REPO}/manifests/1")).status == 200
        tokens.good.clear()
        assert await pull(mirror, app) == [200, 200, 200]
        assert len(tokens.calls) == 2
        tokens.issues_good = False
        tokens.good.clear()
        assert (await mirror.get(f"/v2/{REPO}/manifests/2")).status == status
        assert len(tokens.calls) == 3, "one for HEAD and GET"


@pytest.mark.parametrize("status", [0, 400, 401, 403])
async def test_the_scope_of_the_challenge_is_asked_for_if_ours_is_refused(
    mirror, upstream, tokens, app, status
):
    """By the token service (``status``), or by the registry that takes no such token."""
    theirs = "repository:tenant/app:pull"
    asked: list[str] = []

    async def issue(request: web.BaseRequest) -> web.Response:
        asked.append(request.rel_url.query["scope"])
        if asked[-1] != theirs and status:
            return web.Response(status=status)
        return web.json_response({"token": asked[-1].replace(":", ".")})

    async with serving(issue) as tokens.url:
        tokens.good = {theirs.replace(":", ".")}
        upstream.guard = tokens.guard(f',scope="{theirs}"')
        assert await pull(mirror, app) == [200, 200, 200]
    assert asked == [f"repository:{REPO}:pull", theirs]


async def test_a_renamed_repository_needs_a_token_for_its_new_name(mirror, upstream, app):
    upstream.add_image("library/new", app, "1")
    asked: list[str] = []

    async def issue(request: web.BaseRequest) -> web.Response:
        asked.append(request.rel_url.query["scope"].split(":")[1])
        return web.json_response({"token": asked[-1].replace("/", ".")})

    async with serving(issue) as realm:

        def guard(request: web.BaseRequest, path: str) -> web.Response | None:
            name = path.removeprefix("/v2/").rsplit("/", 2)[0]
            if request.headers.get("Authorization") != f"Bearer {name.replace('/', '.')}":
                challenge = f'Bearer realm="{realm}",scope="repository:{name}:pull"'
                return web.Response(status=401, headers={"WWW-Authenticate": challenge})
            if name == REPO:
                location = path.replace(REPO, "library/new")
                return web.Response(status=301, headers={"Location": location})
            return None

        upstream.guard = guard
        assert await pull(mirror, app) == [200, 200, 200]
    assert asked == [REPO, "library/new"]


# Another registry behind a redirect (lscr.io and cr.l5d.io lead to ghcr.io).


@pytest.fixture
async def behind():
    async with FakeRegistry() as registry:
        yield registry


def leading_to(behind: FakeRegistry, own: TokenService | None = None):
    """A registry that has its own tokens, perhaps, and redirects everything to another one."""
    lets_in = own.guard() if own else None

    def guard(request: web.BaseRequest, path: str) -> web.Response:
        location = {"Location": f"{behind.url}{path}"}
        refusal = lets_in(request, path) if lets_in else None
        return refusal or web.Response(status=307, headers=location)

    return guard


@pytest.mark.parametrize("own", [True, False])
async def test_another_registry_behind_a_redirect_is_asked_with_an_anonymous_token(
    tmp_path, upstream, behind, tokens, app, own
):
    theirs = TokenService()
    behind.add_image(REPO, app, "1")
    async with (
        serving(theirs.answer) as theirs.url,
        running(tmp_path, with_credentials(upstream)) as mirror,
    ):
        behind.guard = theirs.guard()
        upstream.guard = leading_to(behind, tokens if own else None)
        assert await pull(mirror, app) == [200, 200, 200]
        assert (await mirror.get(f"/v2/{REPO}/tags/list")).status == 200
        head = await mirror.get(f"/v2/{REPO}/blobs/{app.digests[0]}", "HEAD")
        assert head.status == 200
    assert [authorization for _, authorization in theirs.calls] == [None]
    assert theirs.calls[0][0]["scope"] == f"repository:{REPO}:pull"
    assert {seen.headers.get("Authorization") for seen in behind.seen} == {None, "Bearer token-1"}


async def test_what_the_registry_behind_a_redirect_keeps_private_is_401(
    tmp_path, upstream, behind, tokens
):
    challenge = {"WWW-Authenticate": f'Bearer realm="{tokens.url}/token"'}

    def guard(request: web.BaseRequest, path: str) -> web.Response:
        return web.Response(status=401, headers=challenge)

    behind.guard = guard
    upstream.guard = leading_to(behind)
    async with running(tmp_path, with_credentials(upstream)) as mirror:
        answer = await mirror.get(f"/v2/{REPO}/manifests/1")
    assert (answer.status, "WWW-Authenticate" in answer.headers) == (401, False)
    assert [authorization for _, authorization in tokens.calls] == [None]


async def test_a_registry_behind_a_redirect_that_wants_a_password_gets_none(
    tmp_path, upstream, behind
):
    challenge = {"WWW-Authenticate": 'Basic realm="x"'}

    def guard(request: web.BaseRequest, path: str) -> web.Response:
        return web.Response(status=401, headers=challenge)

    behind.guard = guard
    upstream.guard = leading_to(behind)
    async with running(tmp_path, with_credentials(upstream)) as mirror:
        answer = await mirror.get(f"/v2/{REPO}/manifests/1")
    assert (answer.status, f"redirect to {behind.url}" in answer.body.decode()) == (401, True)
    assert all("Authorization" not in seen.headers for seen in behind.seen)


async def test_a_registry_behind_two_others_is_not_logged_in_to(tmp_path, upstream, behind, tokens):
    theirs = TokenService()
    async with serving(theirs.answer) as theirs.url, FakeRegistry() as last:
        last.guard = theirs.guard()
        behind.guard = leading_to(last, tokens)
        upstream.guard = leading_to(behind)
        async with running(tmp_path, {"docker.io": upstream.url}) as mirror:
            assert (await mirror.get(f"/v2/{REPO}/manifests/1")).status == 401
    assert (bool(tokens.calls), theirs.calls) == (True, [])


async def test_redirects_to_ever_other_registries_are_followed(mirror, upstream, app):
    """More than the mirror remembers."""
    theirs = TokenService()
    async with serving(theirs.answer) as theirs.url, AsyncExitStack() as stack:
        for number in range(18):
            registry = await stack.enter_async_context(FakeRegistry(blobs=upstream.blobs))
            registry.guard = theirs.guard()
            upstream.add_image(f"library/app{number}", app, "1")
            registry.add_image(f"library/app{number}", app, "1")
            upstream.guard = leading_to(registry)
            assert (await mirror.get(f"/v2/library/app{number}/manifests/1")).status == 200
    assert len(theirs.calls) == 18
