"""Clients with their own credentials: what is private is given to whom upstream lets in."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from mirror.stats.queries import read_report
from tests.fakes import FakeRegistry, Fault, image, random_bytes
from tests.fakes.content import OCI_MANIFEST, digest_of
from tests.fakes.office import EVERYBODY, Office, basic
from tests.running import Mirror, eventually, running
from tests.waiting import limit

pytestmark = [pytest.mark.slow]


TEAM, OTHER, MINE, OPEN = "team/app", "other/app", "eve/app", "library/base"
GRANT_SECONDS = 0.5
ANN, BOB, EVE = (basic(name, f"secret-of-{name}") for name in ("ann", "bob", "eve"))
WRONG = basic("ann", "wrong")
GOOD, REFUSED = [200] * 5, [401] * 5
MIB = 1 << 20


@asynccontextmanager
async def serving(answer: Any) -> AsyncIterator[str]:
    """A little HTTP server; yields its address."""
    runner = web.ServerRunner(web.Server(answer), shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def opened(upstream: FakeRegistry, *, bearer: bool) -> AsyncIterator[Office]:
    """Ann and Bob may read the team's image, Bob alone the other one, Eve has one of her own."""
    office = Office(upstream, bearer)
    office.add(TEAM, image(random_bytes(200_000, 1), marker="team"), ANN, BOB)
    office.add(OTHER, image(random_bytes(150_000, 2), marker="other"), BOB)
    office.add(MINE, image(random_bytes(1000, 3), marker="eve"), EVE)
    office.add(OPEN, image(random_bytes(100_000, 4), marker="open"), EVERYBODY)
    async with serving(office.issue) as address:
        office.realm = f"{address}/token"
        yield office


@pytest.fixture(params=["basic", "bearer"])
async def either(request, upstream: FakeRegistry) -> AsyncIterator[Office]:
    async with opened(upstream, bearer=request.param == "bearer") as office:
        yield office


@pytest.fixture
async def office(upstream: FakeRegistry) -> AsyncIterator[Office]:
    async with opened(upstream, bearer=True) as office:
        yield office


@asynccontextmanager
async def visited(directory, office: Office, grant: float = 30, **more: Any):
    """A mirror that takes clients' credentials for the office's registry."""
    table = {"url": office.registry.url, "client_credentials": True, **more.pop("table", {})}
    access = {"grant_max_age": f"{grant}s"}
    async with running(directory, {"docker.io": table}, access=access, **more) as mirror:
        yield mirror


@pytest.fixture
async def mirror(tmp_path, office: Office) -> AsyncIterator[Mirror]:
    async with visited(tmp_path / "cache", office) as mirror:
        yield mirror


async def pull(mirror: Mirror, office: Office, repository: str, who: str | None) -> list[int]:
    """Everything a client asks for; the statuses."""
    manifest, blobs = office.content(repository)
    headers = {} if who is None else {"Authorization": who}
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


def fetched(office: Office) -> tuple[int, int]:
    """How often the registry has given a blob, and a manifest."""
    return office.given.count(("GET", "blobs")), office.given.count(("GET", "manifests"))


# Who gets it.


async def test_right_credentials_pull_and_later_pulls_come_from_the_cache(tmp_path, either):
    async with visited(tmp_path, either) as mirror:
        assert await pull(mirror, either, TEAM, ANN) == GOOD
        asked = fetched(either)
        assert asked == (2, 1)
        assert await pull(mirror, either, TEAM, ANN) == GOOD
        assert await pull(mirror, either, TEAM, BOB) == GOOD
        assert fetched(either) == asked
        hits = 'mirror_requests_total{kind="blob",result="hit",upstream="docker.io"}'
        await eventually(mirror, hits, 4)


async def test_without_or_with_wrong_credentials_it_is_401(tmp_path, either):
    async with visited(tmp_path, either) as mirror:
        for _ in range(2):  # nobody has it in the cache yet, then somebody has
            for who in (None, WRONG, EVE):
                assert await pull(mirror, either, TEAM, who) == REFUSED
            answer = await mirror.get(f"/v2/{TEAM}/manifests/1")
            assert "Cache-Control" not in answer.headers
            assert answer.headers["WWW-Authenticate"] == 'Basic realm="docker.io", charset="UTF-8"'
            assert json.loads(answer.body)["errors"][0]["code"] == "UNAUTHORIZED"
            assert await pull(mirror, either, TEAM, ANN) == GOOD
        denied = 'mirror_requests_total{kind="blob",result="denied",upstream="docker.io"}'
        await eventually(mirror, denied, 12)


async def test_revoked_credentials_are_refused_after_the_configured_time(tmp_path, either):
    async with visited(tmp_path, either, GRANT_SECONDS) as mirror:
        assert await pull(mirror, either, TEAM, ANN) == GOOD
        either.readers[TEAM].remove(ANN)  # a token she has is good for an hour
        await asyncio.sleep(GRANT_SECONDS)
        assert await pull(mirror, either, TEAM, ANN) == REFUSED
        assert await pull(mirror, either, TEAM, BOB) == GOOD


async def test_a_refusal_within_that_time_ends_it_at_once(tmp_path, upstream):
    async with (
        opened(upstream, bearer=False) as office,
        visited(tmp_path, office, tags={"max_age": "0s"}) as mirror,
    ):
        assert await pull(mirror, office, TEAM, ANN) == GOOD
        office.readers[TEAM].remove(ANN)
        assert await pull(mirror, office, TEAM, ANN) == REFUSED


async def test_a_registry_that_hides_what_is_private_is_asked_as_the_visitor_too(
    tmp_path, upstream
):
    async with opened(upstream, bearer=False) as office:
        office.hidden = True
        async with visited(tmp_path, office) as mirror:
            assert await pull(mirror, office, TEAM, None) == [404] * 5
            assert await pull(mirror, office, TEAM, ANN) == GOOD
            assert await pull(mirror, office, TEAM, EVE) == [404] * 5


async def test_one_question_lets_a_visitor_in_however_much_it_asks_at_once(mirror, office):
    _, blobs = office.content(TEAM)
    paths = [f"/v2/{TEAM}/blobs/{blob}" for blob in blobs] * 10
    answers = await asyncio.gather(*(mirror.get(path, Authorization=ANN) for path in paths))
    assert {answer.status for answer in answers} == {200}
    assert office.token_calls.count(ANN) == 1
    assert fetched(office) == (2, 0)


async def test_what_one_asks_for_in_vain_does_not_keep_others_out(mirror, office):
    _, (config, _) = office.content(TEAM)
    nothing = digest_of(b"nothing")
    answers = await asyncio.gather(
        *(mirror.get(f"/v2/{TEAM}/blobs/{each}", Authorization=ANN) for each in (nothing, config))
    )
    assert [answer.status for answer in answers] == [404, 200]


@pytest.mark.parametrize("hidden", [False, True])
async def test_what_another_was_shown_is_no_answer_to_who_asks_for_two_things(
    mirror, office, hidden
):
    """Eve's question after one thing ends in 404; the other is linked to the repository."""
    assert await pull(mirror, office, TEAM, ANN) == GOOD
    office.hidden = hidden
    _, blobs = office.content(TEAM)
    asked = [digest_of(b"nothing"), *blobs, *blobs]
    paths = [f"/v2/{TEAM}/blobs/{digest}" for digest in asked]
    for _ in range(2):
        answers = await asyncio.gather(*(mirror.get(path, Authorization=EVE) for path in paths))
        assert {answer.status for answer in answers} <= {401, 404}


async def test_being_let_in_by_one_question_opens_nothing_else_that_is_asked_at_once(
    mirror, office
):
    assert await pull(mirror, office, TEAM, ANN) == GOOD
    _, (own, _) = office.content(MINE)
    _, (_, layer) = office.content(TEAM)
    for number in range(5):  # whichever of the two is the question that lets one in
        who = basic(f"eve{number}", "secret-of-eve")
        office.readers[MINE].add(who)
        for digests in ((own, own, layer), (layer, own, own)):
            paths = [f"/v2/{MINE}/blobs/{digest}" for digest in digests]
            answers = await asyncio.gather(*(mirror.get(path, Authorization=who) for path in paths))
            statuses = [200 if digest == own else 404 for digest in digests]
            assert [answer.status for answer in answers] == statuses


async def test_a_registry_that_knows_no_head_is_asked_by_get(mirror, office, upstream):
    upstream.faults.append(Fault(kind="blob", method="HEAD", status=405, times=1000))
    _, (config, layer) = office.content(TEAM)
    for who, status in ((ANN, 200), (EVE, 401)):
        for blob in (config, layer):
            assert (
                await mirror.get(f"/v2/{TEAM}/blobs/{blob}", Authorization=who)
            ).status == status
    guess = await mirror.get(f"/v2/{MINE}/blobs/{layer}", Authorization=EVE)
    assert guess.status == 404


# What is public.


async def test_what_is_public_goes_the_ordinary_way_whatever_a_client_sends(mirror, office):
    """Docker Hub's clients bring a new token of nobody's with every pull."""
    assert await pull(mirror, office, OPEN, None) == GOOD
    asked = len(office.registry.seen)
    for who in (ANN, WRONG, *(f"Bearer {office.token(None, OPEN)}" for _ in range(3))):
        assert await pull(mirror, office, OPEN, who) == GOOD
    assert len(office.registry.seen) == asked
    assert set(office.token_calls) == {None}


async def test_what_is_public_is_served_offline_after_a_restart_whatever_a_client_sends(
    tmp_path, office
):
    async with visited(tmp_path, office) as mirror:
        assert await pull(mirror, office, OPEN, ANN) == GOOD
    await office.registry.stop()
    async with visited(tmp_path, office) as mirror:
        for who in (None, BOB, "Bearer something"):
            assert await pull(mirror, office, OPEN, who) == GOOD


async def test_a_layer_of_both_is_for_everybody_by_the_public_repository(tmp_path, mirror, office):
    base = random_bytes(50_000, 9)
    office.add("library/shared", image(base, marker="a"), EVERYBODY)
    office.add(TEAM, image(base, b"ours", marker="b"), ANN)
    path = f"blobs/{digest_of(base)}"
    assert (await mirror.get(f"/v2/{TEAM}/{path}", Authorization=ANN)).status == 200
    assert (await mirror.get(f"/v2/{TEAM}/{path}")).status == 401
    assert (await mirror.get(f"/v2/library/shared/{path}")).body == base
    assert (await mirror.get(f"/v2/{TEAM}/{path}")).status == 200, "it is everybody's now"
    assert (await mirror.get(f"/v2/{TEAM}/blobs/{digest_of(b'ours')}")).status == 401
    async with limit():  # there once, as soon as it is adopted
        while [it.parts[-4] for it in (tmp_path / "cache").glob("*/sha256/*/*")] != ["blobs"]:
            await asyncio.sleep(0.01)


async def test_a_repository_that_becomes_public_is(tmp_path, office):
    async with visited(tmp_path, office, tags={"negative_max_age": "0s"}) as mirror:
        assert await pull(mirror, office, TEAM, ANN) == GOOD
        office.readers[TEAM].add(EVERYBODY)
        office.scopes.clear()
        assert await pull(mirror, office, TEAM, None) == GOOD


async def test_who_is_not_limited_upstream_may_pull_while_the_mirror_is(mirror, office):
    limited = Fault(kind="manifest", status=429, headers={"Retry-After": "60"})
    office.registry.faults.append(limited)
    assert (await mirror.get(f"/v2/{OPEN}/manifests/1")).status == 429
    assert (await mirror.get(f"/v2/{OPEN}/manifests/1")).status == 429
    office.readers[OPEN].add(ANN)
    assert await pull(mirror, office, OPEN, ANN) == GOOD
    assert (await mirror.get(f"/v2/{OPEN}/manifests/1")).status == 429


# Digests are no keys.


def guesses(digest: str, kind: str) -> list[tuple[str, str, dict[str, str]]]:
    """Everything somebody may try who knows a digest: method, path, headers."""
    tried = []
    for repository in (MINE, TEAM, OPEN, "nobody/knows"):
        path = f"/v2/{repository}/{kind}/{digest}"
        for headers in ({}, {"Range": "bytes=0-9"}, {"If-None-Match": f'"{digest}"'}):
            tried += [("GET", path, headers), ("HEAD", path, headers)]
    return tried


async def guess(mirror: Mirror, digest: str, kind: str, who: str | None) -> set[int]:
    headers = {} if who is None else {"Authorization": who}
    return {
        (await mirror.get(path, method, **headers, **more)).status
        for method, path, more in guesses(digest, kind)
    }


@pytest.mark.parametrize("who", [EVE, WRONG, None])
async def test_nobody_gets_a_private_object_by_its_digest(mirror, office, who):
    manifest, blobs = office.content(TEAM)
    for _ in range(3):
        assert await pull(mirror, office, TEAM, ANN) == GOOD
    for digest, kind in ((manifest, "manifests"), *((blob, "blobs") for blob in blobs)):
        assert await guess(mirror, digest, kind, who) <= {401, 404}
    for path in (f"/v2/{TEAM}/tags/list", f"/v2/{TEAM}/referrers/{manifest}"):
        answer = await mirror.get(path, Authorization=ANN)
        assert answer.status == 200
        headers = {} if who is None else {"Authorization": who}
        assert (await mirror.get(path, **headers)).status == 401


async def test_somebody_with_a_right_elsewhere_learns_nothing_from_what_upstream_is_asked(
    tmp_path, office
):
    """For a digest that is in the cache and for one that is nowhere it is the same questions."""
    async with visited(tmp_path, office, tags={"negative_max_age": "0s"}) as mirror:
        assert await pull(mirror, office, TEAM, ANN) == GOOD
        assert await pull(mirror, office, MINE, EVE) == GOOD
        _, (_, layer) = office.content(TEAM)
        told = []
        for digest in (layer, digest_of(b"nowhere")):
            for repository in (MINE, TEAM):
                before = len(office.registry.seen)
                path = f"/v2/{repository}/blobs/{digest}"
                answer = await mirror.get(path, Authorization=EVE)
                asked = [(each.method, each.kind) for each in office.registry.seen[before:]]
                told.append((answer.status, answer.body.replace(digest.encode(), b""), asked))
        assert told[:2] == told[2:]


async def test_who_has_the_layer_in_a_repository_of_its_own_gets_it_there_alone(mirror, office):
    assert await pull(mirror, office, TEAM, ANN) == GOOD
    _, (config, layer) = office.content(TEAM)
    office.blobs[MINE].add(layer)  # she has pushed the very same bytes
    fetches = fetched(office)
    assert (await mirror.get(f"/v2/{MINE}/blobs/{layer}", Authorization=EVE)).status == 200
    assert fetched(office) == fetches, "upstream was asked, not for the bytes"
    assert (await mirror.get(f"/v2/{MINE}/blobs/{config}", Authorization=EVE)).status == 404
    assert (await mirror.get(f"/v2/{TEAM}/blobs/{layer}", Authorization=EVE)).status == 401


async def test_a_private_object_of_one_upstream_is_not_had_through_another(tmp_path, office):
    async with FakeRegistry() as second:
        upstreams = {
            "docker.io": {"url": office.registry.url, "client_credentials": True},
            "second.example.com": second.url,
            "third.example.com": {
                "url": second.url,
                "client_credentials": True,
                "hosts": ["third.test"],
            },
        }
        async with running(tmp_path, upstreams) as mirror:
            assert await pull(mirror, office, TEAM, ANN) == GOOD
            manifest, (_, layer) = office.content(TEAM)
            for kind, digest in (("manifests", manifest), ("blobs", layer)):
                for name in ("second.example.com", "third.example.com"):
                    for host in ("third.test", "mirror.test"):
                        path = f"/v2/{name}/{TEAM}/{kind}/{digest}"
                        answer = await mirror.get(path, Authorization=EVE, Host=host)
                        assert answer.status == 404


async def test_no_upstream_opens_what_another_gave_by_saying_that_it_has_it(tmp_path, office):
    """A registry that is not honest: it says yes to every HEAD, and has nothing."""

    async def claim(request: web.BaseRequest) -> web.Response:
        reference = request.path.rpartition("/")[2]
        digest = reference if ":" in reference else manifest
        headers = {"Docker-Content-Digest": digest, "Content-Length": "100"}
        if request.method == "HEAD":
            return web.Response(headers=headers | {"Content-Type": OCI_MANIFEST})
        if "Authorization" not in request.headers:
            return web.Response(status=401, headers={"WWW-Authenticate": "Basic realm=it"})
        return web.Response(body=b"{}", headers={"Accept-Ranges": "bytes"})

    manifest, blobs = office.content(TEAM)
    async with serving(claim) as address:
        second = {"url": address, "client_credentials": True, "hosts": ["second.test"]}
        upstreams = {
            "docker.io": {"url": office.registry.url, "client_credentials": True},
            "second.example.com": second,
        }
        async with running(tmp_path, upstreams) as mirror:
            assert await pull(mirror, office, TEAM, ANN) == GOOD
            headers = {"Authorization": EVE, "Host": "second.test"}
            for path in ("manifests/1", f"manifests/{manifest}", *(f"blobs/{it}" for it in blobs)):
                try:
                    answer = await mirror.get(f"/v2/any/{path}", **headers)
                except aiohttp.ClientError:
                    continue  # broken off: what it sent is not what it said
                assert answer.status == 502, path
            assert await pull(mirror, office, TEAM, ANN) == GOOD


@asynccontextmanager
async def reading(mirror: Mirror, digest: str, who: str) -> AsyncIterator[aiohttp.ClientResponse]:
    """A client that has the beginning of a blob of the team's and has not read the rest."""
    url = f"{mirror.url}/v2/{TEAM}/blobs/{digest}"
    async with mirror.session.get(url, headers={"Authorization": who}) as response:
        assert response.status == 200
        yield response


async def test_joining_a_fill_needs_the_right_too(tmp_path, office):
    data = random_bytes(8 * MIB, 7)
    digest = digest_of(data)
    office.add(TEAM, image(data, marker="big"), ANN)
    office.registry.hold(MIB)
    async with (
        visited(tmp_path, office) as mirror,
        visited(tmp_path, office) as second,
        reading(mirror, digest, ANN) as leading,
    ):
        for each in (mirror, second):
            for who in (EVE, None):
                assert await guess(each, digest, "blobs", who) <= {401, 404}
        async with reading(mirror, digest, BOB) as one, reading(second, digest, BOB) as other:
            assert "collapsed" in one.headers["Cache-Status"]
            assert "collapsed" in other.headers["Cache-Status"]
            office.registry.release()
            for response in (leading, one, other):
                assert digest_of(await response.read()) == digest
    assert office.registry.sent[digest] == len(data)


async def test_answers_to_visitors_are_never_repeated_to_others(mirror, office):
    """Neither by the mirror nor by a cache between it and clients."""
    _, (config, _) = office.content(TEAM)
    root = f"/v2/{TEAM}"
    for path in (f"{root}/manifests/1", f"{root}/blobs/{config}", f"{root}/tags/list"):
        for _ in range(3):
            answer = await mirror.get(path, Authorization=ANN)
            assert (answer.status, answer.headers["Cache-Control"]) == (200, "private")
            assert (await mirror.get(path)).status == 401
            assert (await mirror.get(path, Authorization=EVE)).status == 401


# What stays.


@pytest.mark.long
async def test_what_is_private_stays_so_over_a_restart_and_a_lost_index(tmp_path, office):
    cache = tmp_path / "cache"
    async with visited(cache, office) as mirror:
        assert await pull(mirror, office, TEAM, ANN) == GOOD
        asked = fetched(office)
    for lost in ((), ("cache.db",), ("cache.db", "private/cache.db", "tags/cache.db")):
        for name in lost:
            for file in cache.glob(f"{name}*"):
                file.unlink()
        async with visited(cache, office) as mirror:
            for who in (None, EVE):
                assert await pull(mirror, office, TEAM, who) == REFUSED
            manifest, (_, layer) = office.content(TEAM)
            assert await guess(mirror, layer, "blobs", EVE) <= {401, 404}
            assert await guess(mirror, manifest, "manifests", EVE) <= {401, 404}
            async with limit():
                while (cache / "rebuild").exists():
                    await asyncio.sleep(0.01)
            assert await pull(mirror, office, TEAM, ANN) == GOOD
    assert fetched(office) == asked


async def test_another_process_asks_for_itself_and_finds_the_bytes(tmp_path, office):
    async with visited(tmp_path, office) as first, visited(tmp_path, office) as second:
        assert await pull(first, office, TEAM, ANN) == GOOD
        asked = fetched(office)
        for who in (EVE, None):
            assert await pull(second, office, TEAM, who) == REFUSED
        assert await pull(second, office, TEAM, BOB) == GOOD
        assert fetched(office) == asked


# Upstream gone.


async def test_with_upstream_gone_grants_are_honoured_until_they_end(tmp_path, office):
    tags = {"max_age": "0s"}
    async with (
        visited(tmp_path / "long", office, 600, tags=tags) as mirror,
        visited(tmp_path / "short", office, GRANT_SECONDS, tags=tags) as short,
    ):
        assert await pull(mirror, office, TEAM, ANN) == GOOD
        assert await pull(short, office, TEAM, ANN) == GOOD
        await office.registry.stop()
        assert await pull(mirror, office, TEAM, ANN) == GOOD
        answer = await mirror.get(f"/v2/{TEAM}/manifests/1", Authorization=ANN)
        assert answer.headers["Cache-Status"].startswith("mirror; fwd=stale; detail=unreachable")
        assert await pull(mirror, office, TEAM, BOB) == [502] * 5
        await asyncio.sleep(GRANT_SECONDS)
        answer = await short.get(f"/v2/{TEAM}/manifests/1", Authorization=ANN)
        assert answer.status == 502
        message = json.loads(answer.body)["errors"][0]["message"]
        assert "cannot connect" in message
        assert message.endswith("access to private content cannot be checked either")
        await office.registry.start()
        async with limit():
            while await pull(short, office, TEAM, ANN) != GOOD:  # the breaker looks by itself
                await asyncio.sleep(0.05)


# To whom credentials go.


async def test_logging_in_asks_the_registry(mirror, office):
    answer = await mirror.get("/v2/")
    assert answer.status == 401
    assert answer.headers["WWW-Authenticate"] == 'Basic realm="docker.io", charset="UTF-8"'
    assert (await mirror.get("/v2/", Authorization=ANN)).status == 200
    assert (await mirror.get("/v2/", Authorization=WRONG)).status == 401
    assert (await mirror.get("/healthz")).status == 200
    await office.registry.stop()
    assert (await mirror.get("/v2/", Authorization=ANN)).status == 502


async def test_credentials_go_to_the_registry_they_are_for_and_to_no_other(tmp_path, upstream):
    async with (
        FakeRegistry() as hub,
        FakeRegistry() as quay,
        opened(upstream, bearer=False) as ghcr,
    ):
        challenge = {"WWW-Authenticate": 'Basic realm="it"'}
        for each in (hub, quay):  # everybody is asked for a password
            each.guard = lambda *_: web.Response(status=401, headers=challenge)
        upstreams = {
            "docker.io": {"url": hub.url},
            "ghcr.io": {"url": ghcr.registry.url, "client_credentials": True},
            "quay.io": {"url": quay.url, "client_credentials": True, "hosts": ["quay.test:80"]},
        }
        async with running(tmp_path, upstreams) as mirror:
            for host in ("mirror.test", "quay.test:80", "QUAY.test:80", "ghcr.io", "quay.io"):
                who = EVE if host.lower() == "quay.test:80" else ANN
                for name in ("docker.io", "ghcr.io", "quay.io"):
                    for way in (f"/v2/{name}/{TEAM}", f"/{name}/v2/{TEAM}"):
                        await mirror.get(f"{way}/manifests/1", Authorization=who, Host=host)
                    path = f"/v2/{TEAM}/manifests/1?ns={name}"
                    await mirror.get(path, Authorization=who, Host=host)
            seen = {}
            for name, registry in (("hub", hub), ("ghcr", ghcr.registry), ("quay", quay)):
                seen[name] = {each.headers.get("Authorization") for each in registry.seen}
            assert seen == {"hub": {None}, "ghcr": {None, ANN}, "quay": {None, EVE}}
            assert (await mirror.get("/v2/", Host="mirror.test")).status == 401
            assert (await mirror.get("/v2/", Host="quay.test:80")).status == 401
            assert (await mirror.get("/docker.io/v2/", Host="mirror.test")).status == 200
            assert (await mirror.get("/quay.io/v2/", Host="mirror.test")).status == 200
            assert (await mirror.get("/ghcr.io/v2/", Host="quay.test:80")).status == 200


async def test_nobody_is_asked_for_credentials_where_none_are_taken(tmp_path, office):
    async with running(tmp_path, {"docker.io": office.registry.url}) as mirror:
        assert (await mirror.get("/v2/", Authorization=ANN)).status == 200
        answer = await mirror.get(f"/v2/{TEAM}/manifests/1", Authorization=ANN)
        assert answer.status == 401
        assert "WWW-Authenticate" not in answer.headers
    assert ANN not in {each.headers.get("Authorization") for each in office.registry.seen}


async def test_a_mirror_of_the_registry_and_a_cdn_never_see_them(tmp_path, office):
    seen: list[str | None] = []

    async def cdn(request: web.BaseRequest) -> web.Response:
        seen.append(request.headers.get("Authorization"))
        return web.Response(body=office.registry.blobs[request.path.rpartition("/")[2]])

    async with FakeRegistry() as near, serving(cdn) as address:
        office.registry.redirect_blobs_to = lambda digest: f"{address}/{digest}"
        async with visited(tmp_path, office, table={"mirrors": [near.url]}) as mirror:
            assert await pull(mirror, office, TEAM, ANN) == GOOD
    assert near.seen
    assert {each.headers.get("Authorization") for each in near.seen} == {None}
    assert seen
    assert set(seen) == {None}


async def test_a_token_is_sent_as_it_came(mirror, office):
    token = f"Bearer {office.token(ANN, TEAM)}"
    assert await pull(mirror, office, TEAM, token) == GOOD
    assert {None, token} < {each.headers.get("Authorization") for each in office.registry.seen}
    assert await pull(mirror, office, TEAM, f"Bearer {office.token(EVE, TEAM)}") == REFUSED
    assert await pull(mirror, office, OTHER, token) == REFUSED


@pytest.mark.parametrize(
    "authorization",
    ["Basic", "Basic !", "Basic bm9jb2xvbg==", "Bearer", "Negotiate abc", "x" * 7000, "Basic /w=="],
)
async def test_strange_credentials_are_refused_like_wrong_ones(mirror, office, authorization):
    assert await pull(mirror, office, TEAM, ANN) == GOOD
    assert await pull(mirror, office, TEAM, authorization) == REFUSED
    assert await pull(mirror, office, OPEN, authorization) == GOOD


# Secrets.


async def test_no_secret_in_logs_metrics_errors_or_on_disk(tmp_path, either, caplog):
    caplog.set_level("DEBUG")
    cache = tmp_path / "cache"
    told = []
    token = either.token(ANN, TEAM)
    senders = (ANN, EVE, WRONG, f"Bearer {token}", "Bearer wrong-token")
    async with visited(cache, either, GRANT_SECONDS, log={"level": "debug"}) as mirror:
        for repository in (TEAM, OPEN, "nobody/knows"):
            for who in senders:
                answer = await mirror.get(f"/v2/{repository}/manifests/1", Authorization=who)
                told.append(answer.body.decode() + str(answer.headers))
        await pull(mirror, either, TEAM, ANN)
        await mirror.get("/v2/", Authorization=WRONG)
        # Refused, unreachable, broken, gone: whatever can be said is said.
        for fault in (
            Fault("", status=500),
            Fault("", refuse=True),
            Fault("", body=b"{", status=200),
        ):
            either.registry.faults.append(fault)
            await asyncio.sleep(GRANT_SECONDS)
            answer = await mirror.get(f"/v2/{TEAM}/manifests/1", Authorization=ANN)
            told.append(answer.body.decode() + str(answer.headers))
        await either.registry.stop()
        for who in senders:
            answer = await mirror.get(f"/v2/{TEAM}/manifests/2", Authorization=who)
            told.append(answer.body.decode())
        for path in ("/metrics", "/", "/readyz"):
            told.append((await mirror.get(path)).body.decode())
    told += [caplog.text, *(repr(record.__dict__) for record in caplog.records)]
    kept = b"".join(file.read_bytes() for file in cache.rglob("*") if file.is_file())
    secrets = ["secret-of", "wrong", *(who.partition(" ")[2] for who in senders), *either.scopes]
    for secret in secrets:
        assert not [text for text in told if secret in text], secret
        assert secret.encode() not in kept, secret


async def test_the_ledger_names_no_private_repository(tmp_path, office):
    async with visited(tmp_path, office) as mirror:
        assert await pull(mirror, office, TEAM, ANN) == GOOD
        assert await pull(mirror, office, OPEN, ANN) == GOOD
        assert await pull(mirror, office, TEAM, EVE) == REFUSED
    said = read_report(tmp_path / "ledger", time.time())
    assert {(each.repository, each.reference) for each in said.recent} == {
        ("(private)", "(private)"),
        (OPEN, "1"),
    }
    assert TEAM not in repr(said)


async def test_a_private_image_without_room_is_a_trouble_without_a_name(tmp_path, office):
    async with visited(tmp_path / "cache", office, cache={"max_size": "1KiB"}) as mirror:
        answer = await mirror.get(f"/v2/{TEAM}/manifests/1", Authorization=ANN)
        assert answer.status == 200
        text = (await mirror.get("/", Accept="text/html")).body.decode()
    assert "a private image is not kept" in text
    assert TEAM not in text
