"""Clients that believe they speak to their private registry, and send it their own credentials."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from tests.fakes import FakeRegistry, image, random_bytes
from tests.fakes.content import DOCKER_MANIFEST, digest_of
from tests.fakes.office import EVERYBODY, Office, basic
from tests.running import Answer, Mirror, running
from tests.upstream.test_auth import serving

pytestmark = [pytest.mark.slow]

TEAM, MINE, OPEN = "team/app", "eve/app", "open/app"
NAME = "registry.lan:5000"
ANN, EVE = (basic(name, f"secret-of-{name}") for name in ("ann", "eve"))
GRANT_SECONDS = 1


@pytest.fixture
async def office(upstream: FakeRegistry) -> AsyncIterator[Office]:
    """A registry with a token service, as Docker Hub is."""
    office = Office(upstream, bearer=True)
    office.add(TEAM, image(random_bytes(200_000, 1), marker="team"), ANN)
    office.add(MINE, image(b"mine", marker="mine"), EVE)
    office.add(OPEN, image(random_bytes(100_000, 2), marker="open"), EVERYBODY)
    async with serving(office.issue) as address:
        office.realm = f"{address}/token"
        yield office


@pytest.fixture
async def mirror(tmp_path, office: Office) -> AsyncIterator[Mirror]:
    upstreams = {"docker.io": "http://127.0.0.1:9", NAME: office.registry.url}
    access = {"grant_max_age": f"{GRANT_SECONDS}s"}
    proxy = {"listen": "127.0.0.1:0"}
    async with running(tmp_path / "cache", upstreams, proxy=proxy, access=access) as mirror:
        yield mirror


async def ask(mirror: Mirror, path: str, who: str | None, method: str = "GET") -> Answer:
    headers = {} if who is None else {"Authorization": who}
    url = f"http://{NAME}/v2/{path}"
    async with mirror.session.request(method, url, headers=headers, proxy=mirror.proxy) as response:
        return Answer(response.status, response.headers, await response.read())


async def pull(mirror: Mirror, office: Office, repository: str, who: str | None) -> list[int]:
    """Everything a client asks for; the statuses."""
    manifest, blobs = office.content(repository)
    answers = [
        await ask(mirror, f"{repository}/{path}", who)
        for path in ("manifests/1", f"manifests/{manifest}", *(f"blobs/{each}" for each in blobs))
    ]
    for answer, digest in zip(answers[1:], (manifest, *blobs), strict=True):
        assert answer.status != 200 or digest_of(answer.body) == digest
    return [answer.status for answer in answers]


def token(office: Office, who: str | None, repository: str) -> str:
    """What a client gets from the token service for one pull."""
    return f"Bearer {office.token(who, repository)}"


def given(office: Office) -> int:
    return office.given.count(("GET", "blobs")) + office.given.count(("GET", "manifests"))


async def test_the_registrys_own_challenge_reaches_the_client(mirror, office):
    _, (_, layer) = office.content(TEAM)
    for path in (f"{TEAM}/manifests/1", f"{TEAM}/blobs/{layer}", f"{TEAM}/tags/list", ""):
        for who in (None, "Bearer wrong"):
            answer = await ask(mirror, path, who)
            assert answer.status == 401
            wanted = f'Bearer realm="{office.realm}",service="office"'
            assert answer.headers["WWW-Authenticate"] == wanted


async def test_each_pull_has_a_token_of_its_own_and_the_bytes_come_once(mirror, office):
    for _ in range(3):
        assert await pull(mirror, office, TEAM, token(office, ANN, TEAM)) == [200] * 4
    assert given(office) == 3


async def test_a_token_for_something_else_is_no_key(mirror, office):
    assert await pull(mirror, office, TEAM, token(office, ANN, TEAM)) == [200] * 4
    manifest, (_, layer) = office.content(TEAM)
    for who in (
        None,
        token(office, None, TEAM),
        token(office, EVE, TEAM),
        token(office, EVE, MINE),
    ):
        assert await pull(mirror, office, TEAM, who) == [401] * 4
        for path in (
            f"{MINE}/blobs/{layer}",
            f"{MINE}/manifests/{manifest}",
            f"{OPEN}/blobs/{layer}",
        ):
            for method in ("GET", "HEAD"):
                assert (await ask(mirror, path, who, method)).status in {401, 404}


async def test_by_the_mirrors_own_name_it_is_nobodys(mirror, office):
    who = token(office, ANN, TEAM)
    assert await pull(mirror, office, TEAM, who) == [200] * 4
    _, (_, layer) = office.content(TEAM)
    for path in (f"/v2/{NAME}/{TEAM}/blobs/{layer}", f"/v2/{TEAM}/blobs/{layer}?ns={NAME}"):
        answer = await mirror.get(path, Authorization=who)
        assert answer.status == 401
        assert "WWW-Authenticate" not in answer.headers


async def test_a_token_that_is_refused_later_is_not_believed_for_long(mirror, office):
    who = token(office, ANN, TEAM)
    assert await pull(mirror, office, TEAM, who) == [200] * 4
    office.scopes.clear()
    await asyncio.sleep(GRANT_SECONDS)
    assert await pull(mirror, office, TEAM, who) == [401] * 4


async def test_what_is_public_is_one_thing_for_everybody_and_there_offline(mirror, office):
    for who in (None, token(office, None, OPEN), token(office, ANN, OPEN)):
        assert await pull(mirror, office, OPEN, who) == [200] * 4
    assert given(office) == 3
    await office.registry.stop()
    for who in (None, "Bearer of-another-day"):
        assert await pull(mirror, office, OPEN, who) == [200] * 4


async def test_what_a_public_image_lacks_stays_missing_with_upstream_gone(tmp_path, office):
    """Docker sends a new token with every pull, and none if it cannot get one."""
    office.registry.referrers_api = False
    manifest, _ = office.content(OPEN)
    paths = [f"referrers/{manifest}", f"manifests/{manifest.replace(':', '-')}"]
    upstreams = {"docker.io": "http://127.0.0.1:9", NAME: office.registry.url}
    options = {
        "proxy": {"listen": "127.0.0.1:0"},
        "access": {"grant_max_age": f"{GRANT_SECONDS}s"},
        "tags": {"negative_max_age": "0s", "max_age": "0s"},
    }
    async with running(tmp_path / "cache", upstreams, **options) as mirror:
        for who in (None, token(office, ANN, OPEN)):
            assert await pull(mirror, office, OPEN, who) == [200] * 4
            for path in paths:
                refused = 401 if who is None else 404
                assert (await ask(mirror, f"{OPEN}/{path}", who)).status == refused
    await office.registry.stop()
    async with running(tmp_path / "cache", upstreams, **options) as mirror:
        for who in (None, "Bearer old"):
            assert await pull(mirror, office, OPEN, who) == [200] * 4
            for path in paths:
                assert (await ask(mirror, f"{OPEN}/{path}", who)).status == 404
    await office.registry.start()


async def test_what_others_may_not_see_is_not_missing_for_a_client_with_access(tmp_path, office):
    office.hidden = True
    upstreams = {"docker.io": "http://127.0.0.1:9", NAME: office.registry.url}
    tags = {"negative_max_age": "0s", "max_age": "0s"}
    proxy = {"listen": "127.0.0.1:0"}
    async with running(tmp_path / "cache", upstreams, proxy=proxy, tags=tags) as mirror:
        assert await pull(mirror, office, TEAM, None) == [404] * 4
        assert await pull(mirror, office, TEAM, token(office, ANN, TEAM)) == [200] * 4
    await office.registry.stop()
    async with running(tmp_path / "cache", upstreams, proxy=proxy, tags=tags) as mirror:
        assert await pull(mirror, office, TEAM, token(office, ANN, TEAM)) == [502] * 4
    await office.registry.start()


@pytest.mark.parametrize("who", [None, ANN])
async def test_what_upstream_lacks_for_a_picky_client_makes_nothing_private(
    tmp_path, upstream, who
):
    """What is private is kept apart, and is not there offline after a restart."""
    content = image(b"layer")
    upstream.add_image(OPEN, content, "1")
    where = f"{OPEN}/manifests/1"
    upstreams, tags = {NAME: upstream.url}, {"negative_max_age": "0s"}
    options = {"proxy": {"listen": "127.0.0.1:0"}, "tags": tags}
    async with running(tmp_path, upstreams, **options) as mirror:
        url = f"http://{NAME}/v2/{where}"
        headers = {"Accept": DOCKER_MANIFEST} | ({} if who is None else {"Authorization": who})
        asking = mirror.session.get(url, headers=headers, proxy=mirror.proxy)
        async with asking as picky:
            assert picky.status == 404
        for path in (where, *(f"{OPEN}/blobs/{each}" for each in content.digests)):
            assert (await ask(mirror, path, who)).status == 200
    await upstream.stop()
    async with running(tmp_path, upstreams, **options) as mirror:
        for path in (where, *(f"{OPEN}/blobs/{each}" for each in content.digests)):
            assert (await ask(mirror, path, None)).status == 200
    await upstream.start()
