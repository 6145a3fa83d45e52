"""Clients with their own credentials: what is private is given to whom upstream lets in."""

import asyncio
import base64
import json
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web

from tests.fakes import FakeRegistry, image, random_bytes
from tests.fakes.content import Image, digest_of
from tests.running import Mirror, running

TEAM, OTHER, OPEN = "team/app", "other/app", "library/base"
GRANT = 0.5


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


ANN, BOB, EVE = (basic(name, f"secret-of-{name}") for name in ("ann", "bob", "eve"))


@dataclass
class Office:
    """Who may read which repository of a registry, and the tokens it has issued.

    A registry knows only what a repository has, as real ones do; ``bearer`` says that it wants
    tokens of its token service instead of passwords.
    """

    registry: FakeRegistry
    readers: dict[str, set[str]] = field(default_factory=dict)
    blobs: dict[str, set[str]] = field(default_factory=dict)
    tokens: dict[str, tuple[str | None, str]] = field(default_factory=dict)
    token_calls: int = 0
    bearer: bool = False
    realm: str = ""
    hidden: bool = False  # what one may not see is 404, as on some registries

    def add(self, repository: str, content: Image, *tags: str, readers: set[str]) -> None:
        self.registry.add_image(repository, content, *tags)
        self.blobs.setdefault(repository, set()).update(content.digests)
        self.readers[repository] = readers

    def known(self, authorization: str | None) -> bool:
        return any(authorization in readers for readers in self.readers.values())

    def may(self, authorization: str | None, repository: str) -> bool:
        readers = self.readers.get(repository, set())
        return "everybody" in readers or authorization in readers

    def guard(self, request: web.BaseRequest, path: str) -> web.Response | None:
        sent = request.headers.get("Authorization")
        if path == "/v2/":
            return None if self._who(sent)[0] else self._challenge()
        repository, kind, reference = path.removeprefix("/v2/").rsplit("/", 2)
        if not self._allowed(sent, repository):
            return web.Response(status=404) if self.hidden and sent else self._challenge()
        if kind == "blobs" and reference not in self.blobs.get(repository, set()):
            return web.Response(status=404)
        return None

    def _who(self, sent: str | None) -> tuple[str | None, str]:
        if self.bearer:
            return self.tokens.get((sent or "").removeprefix("Bearer "), (None, ""))
        return (sent if self.known(sent) else None), ""

    def _allowed(self, sent: str | None, repository: str) -> bool:
        if not self.bearer:
            return self.may(sent, repository)
        token = (sent or "").removeprefix("Bearer ")
        _, scope = self.tokens.get(token, (None, ""))
        # As real token services do: what a token is good for was decided when it was issued.
        return scope == f"repository:{repository}:pull" and token in self.tokens

    def _challenge(self) -> web.Response:
        wanted = (
            f'Bearer realm="{self.realm}",service="office"' if self.bearer else 'Basic realm="o"'
        )
        return web.Response(status=401, headers={"WWW-Authenticate": wanted})

    async def issue(self, request: web.BaseRequest) -> web.Response:
        """The token service."""
        self.token_calls += 1
        sent, scope = request.headers.get("Authorization"), request.rel_url.query.get("scope", "")
        if sent is not None and not self.known(sent):
            return web.Response(status=401)
        repository = scope.removeprefix("repository:").removesuffix(":pull")
        if scope and not self.may(sent, repository):
            scope = ""  # a token that is good for nothing, as Docker Hub's
        token = f"token-{secrets.token_hex(8)}"
        self.tokens[token] = (sent or "somebody", scope)
        return web.json_response({"token": token, "expires_in": 3600})


@asynccontextmanager
async def serving(answer: Any) -> AsyncIterator[str]:
    """A little HTTP server; yields its address."""
    runner = web.ServerRunner(web.Server(answer), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


@pytest.fixture(params=["basic", "bearer"])
async def office(request, upstream: FakeRegistry) -> AsyncIterator[Office]:
    """Ann and Bob may read the team's image, Bob alone the other one, Eve has one of her own."""
    office = Office(upstream, bearer=request.param == "bearer")
    upstream.guard = office.guard
    office.add(TEAM, image(random_bytes(200_000, 1), marker="team"), "1", readers={ANN, BOB})
    office.add(OTHER, image(random_bytes(150_000, 2), marker="other"), "1", readers={BOB})
    office.add("eve/app", image(b"eve", marker="eve"), "1", readers={EVE})
    office.add(OPEN, image(random_bytes(100_000, 3), marker="open"), "1", readers={"everybody"})
    async with serving(office.issue) as address:
        office.realm = f"{address}/token"
        yield office


def visited(upstream: FakeRegistry, **more: Any) -> dict[str, Any]:
    return {"docker.io": {"url": upstream.url, "client_credentials": True, **more}}


@pytest.fixture
async def mirror(tmp_path, office: Office) -> AsyncIterator[Mirror]:
    access = {"grant_max_age": f"{GRANT}s"}
    async with running(tmp_path / "cache", visited(office.registry), access=access) as mirror:
        yield mirror


def content_of(office: Office, repository: str) -> tuple[str, list[str]]:
    """The manifest and the blobs of a repository's only image."""
    manifest = office.registry.tags[repository, "1"]
    document = json.loads(office.registry.manifests[repository, manifest][0])
    return manifest, [each["digest"] for each in (document["config"], *document["layers"])]


async def pull(mirror: Mirror, repository: str, office: Office, **headers: str) -> list[int]:
    """Everything a client asks for; the statuses."""
    manifest, blobs = content_of(office, repository)
    root = f"/v2/{repository}"
    answers = [
        await mirror.get(f"{root}/manifests/1", "HEAD", **headers),
        await mirror.get(f"{root}/manifests/1", **headers),
        await mirror.get(f"{root}/manifests/{manifest}", **headers),
    ]
    answers += await asyncio.gather(
        *(mirror.get(f"{root}/blobs/{blob}", **headers) for blob in blobs)
    )
    for answer, digest in zip(answers[2:], (manifest, *blobs), strict=True):
        assert answer.status != 200 or digest_of(answer.body) == digest
    return [answer.status for answer in answers]


GOOD, REFUSED = [200] * 5, [401] * 5


async def test_right_credentials_pull_and_the_second_pull_comes_from_the_cache(mirror, office):
    assert await pull(mirror, TEAM, office, Authorization=ANN) == GOOD
    asked = office.registry.count("blob"), office.registry.count("manifest", "GET")
    assert await pull(mirror, TEAM, office, Authorization=ANN) == GOOD
    assert await pull(mirror, TEAM, office, Authorization=BOB) == GOOD
    assert (office.registry.count("blob"), office.registry.count("manifest", "GET")) == asked


async def test_without_credentials_or_with_wrong_ones_it_is_401_with_a_challenge(mirror, office):
    for known in (False, True):
        for headers in ({}, {"Authorization": EVE}, {"Authorization": basic("ann", "wrong")}):
            assert await pull(mirror, TEAM, office, **headers) == REFUSED, known
        answer = await mirror.get(f"/v2/{TEAM}/manifests/1")
        assert answer.headers["WWW-Authenticate"] == 'Basic realm="docker.io", charset="UTF-8"'
        assert await pull(mirror, TEAM, office, Authorization=ANN) == GOOD


async def test_revoked_credentials_are_refused_after_the_configured_time(mirror, office):
    assert await pull(mirror, TEAM, office, Authorization=ANN) == GOOD
    office.readers[TEAM].remove(ANN)  # the token she has is good for an hour
    await asyncio.sleep(GRANT)
    assert await pull(mirror, TEAM, office, Authorization=ANN) == REFUSED
    assert await pull(mirror, TEAM, office, Authorization=BOB) == GOOD
