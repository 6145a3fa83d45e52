"""The mirror's own login: when it is sent, and what happens once it is refused."""

import asyncio
import json
import secrets

import pytest
from aiohttp import web

from mirror.upstream.errors import LoginRefusedError
from mirror.upstream.login import OwnLogin
from tests.fakes import FakeRegistry, Fault, image, random_bytes
from tests.fakes.office import basic
from tests.running import Mirror, configured, running
from tests.upstream.test_auth import serving

pytestmark = pytest.mark.slow

REPO = "library/app"
TAG = f"/v2/{REPO}/manifests/1"
NEVER_FRESH = {"max_age": "0s", "negative_max_age": "0s"}
APP = image(random_bytes(10_000))


class Door:
    """Takes one password, of the user ``me``: at the registry itself, or at its token service.

    ``wrong`` is the status for another password, ``closed`` are repositories that even the right
    one does not open (with the status), ``public`` is one that anonymous clients may read.
    """

    def __init__(self, registry: FakeRegistry, password: str, wrong: int = 401) -> None:
        self.password = password
        self.wrong = wrong
        self.closed: dict[str, int] = {}
        self.public = ""
        self.realm = ""
        self.sent: list[str] = []
        self.tokens: set[str] = set()
        registry.guard = self.guard
        registry.add_image(REPO, APP, "1")

    def guard(self, request: web.BaseRequest, path: str) -> web.Response | None:
        header = request.headers.get("Authorization", "")
        if self.public and f"/{self.public}/" in path and header == self.free:
            return None
        if self.realm:
            known, wrong = header.removeprefix("Bearer ") in self.tokens, 401
            challenge = f'Bearer realm="{self.realm}/token",service="x"'
        else:
            known, wrong = self._opens(header), self.wrong if header else 401
            challenge = 'Basic realm="x"'
        if not known:
            return web.Response(status=wrong, headers={"WWW-Authenticate": challenge})
        closed = [status for name, status in self.closed.items() if f"/{name}/" in path]
        headers = {"WWW-Authenticate": challenge}
        return web.Response(status=closed[0], headers=headers) if closed else None

    async def issue(self, request: web.BaseRequest) -> web.Response:
        header = request.headers.get("Authorization", "")
        scope = request.rel_url.query.get("scope", "")
        if not header and f":{self.public}:" in scope:
            return web.json_response({"token": "public"})
        if not self._opens(header):
            return web.Response(status=self.wrong)
        for name, status in self.closed.items():
            if f":{name}:" in scope:
                return web.Response(status=status)
        self.tokens.add(token := f"token-{secrets.token_hex(4)}")
        return web.json_response({"token": token})

    @property
    def free(self) -> str:
        """What an anonymous client sends."""
        return "Bearer public" if self.realm else ""

    def _opens(self, header: str) -> bool:
        if header:
            self.sent.append(header)
        return header == basic("me", self.password)


@pytest.fixture(params=["basic", "bearer"])
async def door(request, upstream):
    door = Door(upstream, "right")
    if request.param == "bearer":
        async with serving(door.issue) as door.realm:
            yield door
    else:
        yield door


def login(upstream: FakeRegistry, **password: str) -> dict[str, object]:
    return {"docker.io": {"url": upstream.url, "username": "me", **password}}


def words(answer) -> str:
    return json.loads(answer.body)["errors"][0]["message"]


async def pull_many(mirror: Mirror, upstream: FakeRegistry, count: int) -> set[int]:
    digests = [upstream.add_blob(random_bytes(1000, seed)) for seed in range(count)]
    paths = [f"/v2/library/app{seed}/blobs/{digest}" for seed, digest in enumerate(digests)]
    return {answer.status for answer in await asyncio.gather(*map(mirror.get, paths))}


async def test_a_refused_password_is_sent_once_and_told_once(tmp_path, upstream, door, caplog):
    async with running(tmp_path, login(upstream, password="wrong"), tags=NEVER_FRESH) as mirror:
        assert await pull_many(mirror, upstream, 30) == {401}
        assert await pull_many(mirror, upstream, 30) == {401}
        told = words(await mirror.get(TAG))
    assert len(door.sent) == 1
    assert 'username and password of [upstreams."docker.io"]' in told
    lines = [each.getMessage() for each in caplog.records if each.name == "mirror.upstream.login"]
    assert len(lines) == 1
    assert 'password of [upstreams."docker.io"]' in lines[0]
    assert "wrong" not in caplog.text


async def test_upstream_counts_as_down_while_it_refuses_the_password(tmp_path, upstream, door):
    up = 'mirror_upstream_up{upstream="docker.io"}'
    async with running(tmp_path, login(upstream, password="wrong"), tags=NEVER_FRESH) as mirror:
        assert await pull_many(mirror, upstream, 3) == {401}
        assert (await mirror.metrics())[up] == 0
        await mirror.reload(configured(tmp_path, login(upstream, password="right")))
        assert await pull_many(mirror, upstream, 3) == {200}
        assert (await mirror.metrics())[up] == 1


async def test_upstream_is_up_again_once_it_accepts_the_password(tmp_path, upstream, door):
    up = 'mirror_upstream_up{upstream="docker.io"}'
    secret = tmp_path / "secret"
    secret.write_text("wrong")
    table = login(upstream, password_file=str(secret))
    async with running(tmp_path / "cache", table, tags=NEVER_FRESH) as mirror:
        assert await pull_many(mirror, upstream, 3) == {401}
        assert (await mirror.metrics())[up] == 0
        secret.write_text("right")
        assert await pull_many(mirror, upstream, 3) == {200}
        assert (await mirror.metrics())[up] == 1


async def test_a_right_password_does_not_make_pulls_wait_for_each_other(tmp_path, upstream, door):
    async with running(tmp_path, login(upstream, password="right")) as mirror:
        assert await pull_many(mirror, upstream, 30) == {200}


@pytest.mark.parametrize("wrong", [401, 403])
async def test_the_password_file_is_read_again_once_the_password_is_refused(
    tmp_path, upstream, door, wrong
):
    """Tokens of ECR and GAR last hours; a cron job writes the next one into the file."""
    door.wrong = wrong
    file = tmp_path / "password"
    file.write_text("right")
    table = login(upstream, password_file=str(file))
    async with running(tmp_path / "cache", table, tags=NEVER_FRESH) as mirror:
        assert (await mirror.get(TAG)).status == 200
        door.password = "next"
        door.tokens.clear()
        file.write_text("next")
        assert (await mirror.get(TAG)).headers["Cache-Status"].endswith("detail=revalidated")
        assert await pull_many(mirror, upstream, 3) == {200}
    assert door.sent.count(basic("me", "right")) <= len(door.sent) - 1


@pytest.mark.parametrize("wrong", [401, 403])
async def test_a_refused_login_is_tried_again_once_the_password_file_changes(
    tmp_path, upstream, door, wrong
):
    door.wrong = wrong
    file = tmp_path / "password"
    file.write_text("wrong")
    table = login(upstream, password_file=str(file))
    async with running(tmp_path / "cache", table) as mirror:
        assert (await mirror.get(TAG)).status == 401
        file.unlink()  # as an editor does that writes another file
        answer = await mirror.get(TAG)
        assert (answer.status, "password_file" in words(answer)) == (401, True)
        file.write_text("right\n")
        assert (await mirror.get(TAG)).body == APP.manifest


async def test_a_login_that_is_refused_does_not_take_cached_tags_away(tmp_path, upstream, door):
    async with running(tmp_path, login(upstream, password="right"), tags=NEVER_FRESH) as mirror:
        assert (await mirror.get(TAG)).status == 200
        door.password = "changed"
        door.tokens.clear()
        for method in ("GET", "HEAD") * 2:
            answer = await mirror.get(TAG, method)
            assert answer.status == 200
            assert answer.headers["Cache-Status"] == "mirror; fwd=stale; detail=login_refused"
        assert await pull_many(mirror, upstream, 10) == {401}
    assert door.sent.count(basic("me", "right")) <= 5


async def test_public_images_come_while_the_login_is_refused(tmp_path, upstream, door, caplog):
    door.public, upstream.referrers_api = "library/free", False
    upstream.add_image(door.public, APP, "1")
    async with running(tmp_path, login(upstream, password="wrong"), tags=NEVER_FRESH) as mirror:
        for _ in range(2):
            assert (await mirror.get(f"/v2/{door.public}/manifests/1")).body == APP.manifest
            assert (await mirror.get(f"/v2/{door.public}/tags/list")).status == 200
            for digest, blob in zip(APP.digests, APP.blobs, strict=True):
                assert (await mirror.get(f"/v2/{door.public}/blobs/{digest}")).body == blob
            for missing in ("manifests/2", f"referrers/{APP.digest}"):  # Docker 29.1 asks
                assert (await mirror.get(f"/v2/{door.public}/{missing}")).status == 404
            answer = await mirror.get(TAG)
            assert (answer.status, "password" in words(answer)) == (401, True)
    assert len(door.sent) == 1
    told = [each.getMessage() for each in caplog.records]
    assert sum("only public images" in line for line in told) == 1


async def test_a_404_for_an_anonymous_client_may_hide_what_the_login_opens(
    tmp_path, upstream, door
):
    door.public = "library/hidden"  # it has no manifest for anonymous clients
    async with running(tmp_path, login(upstream, password="wrong"), tags=NEVER_FRESH) as mirror:
        answer = await mirror.get(f"/v2/{door.public}/manifests/1")
        assert (answer.status, "password" in words(answer)) == (401, True)


@pytest.mark.parametrize("status", [401, 403])
async def test_a_repository_that_the_login_does_not_open_closes_no_other(
    tmp_path, upstream, door, status
):
    door.closed["library/theirs"] = status
    async with running(tmp_path, login(upstream, password="right")) as mirror:
        assert (await mirror.get(TAG)).status == 200
        assert (await mirror.get("/v2/library/theirs/manifests/1")).status == status
        assert await pull_many(mirror, upstream, 3) == {200}


async def test_a_refused_password_is_tried_again_after_a_minute():
    now, told = [0.0], list[bool]()
    login = OwnLogin(
        "docker.io", "me", lambda: "secret", "password", told.append, clock=lambda: now[0]
    )

    async def refused() -> bool:
        try:
            async with login.use() as credentials:
                assert credentials is not None
                login.refuse(credentials)
        except LoginRefusedError:
            return now[0] == login._again_at - 60
        return False

    assert await refused()
    now[0] = 59
    assert not await refused()
    now[0] = 60
    assert await refused()


# What is hidden from clients without credentials.


@pytest.mark.parametrize("hidden", [403, 404])
@pytest.mark.parametrize("ping", ["Basic", "Bearer", ""])
async def test_credentials_are_offered_where_anonymous_clients_get_no_challenge(
    tmp_path, upstream, hidden, ping
):
    """Artifactory and Nexus may say that what is private does not exist, or forbid it."""
    upstream.add_image(REPO, APP, "1")

    async def issue(request: web.BaseRequest) -> web.Response:
        right = request.headers.get("Authorization") == basic("me", "right")
        return web.json_response({"token": "right" if right else "none"})

    async with serving(issue) as realm:

        def guard(request: web.BaseRequest, path: str) -> web.Response | None:
            header = request.headers.get("Authorization")
            if header == ("Bearer right" if ping == "Bearer" else basic("me", "right")):
                return None
            if path == "/v2/":
                challenge = {"WWW-Authenticate": f'{ping} realm="{realm}/token"'}
                return web.Response(status=401, headers=challenge) if ping else None
            return web.Response(status=hidden)

        upstream.guard = guard
        async with running(tmp_path / "with", login(upstream, password="right")) as mirror:
            assert (await mirror.get(TAG)).body == APP.manifest
            for digest in APP.digests:
                assert (await mirror.get(f"/v2/{REPO}/blobs/{digest}")).status == 200
        assert upstream.count("ping") == 1
        async with running(tmp_path / "without", {"docker.io": upstream.url}) as mirror:
            assert (await mirror.get(TAG)).status == hidden
        assert upstream.count("ping") == 1


async def test_what_does_not_exist_costs_one_question_for_a_challenge(tmp_path, upstream):
    upstream.add_image(REPO, APP, "1")
    async with running(tmp_path, login(upstream, password="right")) as mirror:
        for number in range(5):
            assert (await mirror.get(f"/v2/{REPO}/manifests/none{number}")).status == 404
    assert upstream.count("ping") == 1


async def test_a_registry_that_fails_to_say_how_to_log_in_is_sent_no_password(tmp_path, upstream):
    upstream.faults.append(Fault(kind="ping", times=9, status=500))
    async with running(tmp_path, login(upstream, password="right")) as mirror:
        assert (await mirror.get(TAG)).status == 404
    assert all("Authorization" not in seen.headers for seen in upstream.seen)
