"""What one replica asked upstream, the others know: tags, refusals and listings."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator

import pytest

from mirror.cluster.blocks import StatePlace
from mirror.cluster.leases import Leases
from mirror.cluster.secret import Secret
from mirror.cluster.state import PREFIX, StateDownError, opened_state
from mirror.cluster.values import SharedCaches, Tokens
from mirror.oci.digest import Digest
from mirror.oci.manifest import Descriptor
from tests.cluster.conftest import Events
from tests.cluster.replicas import PATIENCE_SECONDS, SECRET, Replicas, replicas
from tests.fakes import Fault, random_bytes
from tests.fakes.content import OCI_MANIFEST, digest_of, image
from tests.fakes.memory_store import MemoryTags
from tests.fakes.office import Office, basic
from tests.running import Mirror
from tests.upstream.test_auth import BASIC, PASSWORD, TokenService, serving
from tests.waiting import limit

pytestmark = [pytest.mark.slow]

DESCRIPTOR = Descriptor(OCI_MANIFEST, Digest.of(b"manifest"), 8)
NAMES = "/v2/library/app/tags/list"
TAG = "/v2/library/app/manifests/latest"
NONE = "/v2/library/app/manifests/none"


async def test_the_replicas_ask_upstream_once_for_tags_refusals_and_listings(
    tmp_path, upstream, redis
):
    upstream.add_image("library/app", image(), "latest")
    async with replicas(tmp_path, upstream, state=redis.url) as cluster:
        bodies = [(await mirror.get(TAG)).body for mirror in cluster.mirrors]
        assert len(set(bodies)) == 1
        assert upstream.count("manifest", "HEAD") == 1
        for mirror in cluster.mirrors:  # also those that did not ask know the name of the image
            assert b'"latest"' in (await mirror.get("/api/v1/images")).body
        for place, status in ((NONE, 404), (NAMES, 200)):
            asked = upstream.count("manifest") + upstream.count("tags")
            answers = [await mirror.get(place) for mirror in cluster.mirrors]
            assert {answer.status for answer in answers} == {status}
            assert len({answer.body for answer in answers}) == 1
            now = upstream.count("manifest") + upstream.count("tags")
            assert now - asked == (2 if place == NONE else 1)  # HEAD, then GET


async def test_a_replica_whose_redis_is_gone_asks_upstream_itself(tmp_path, upstream, redis):
    upstream.add_image("library/app", image(), "latest")
    async with replicas(tmp_path, upstream, state=redis.url) as cluster:
        redis.stop()
        for mirror in cluster.mirrors:
            assert (await mirror.get(TAG)).status == 200
        assert upstream.count("manifest", "HEAD") == 3


@pytest.mark.parametrize("bearer", [False, True])
async def test_what_is_private_stays_in_each_replica(tmp_path, upstream, redis, bearer):
    ann = basic("ann", "secret-of-ann")
    office, private = Office(upstream, bearer), image(random_bytes(200_000))
    office.add("team/app", private, ann)
    layer = f"/v2/team/app/blobs/{digest_of(private.blobs[-1])}"
    async with (
        serving(office.issue) as office.realm,
        replicas(
            tmp_path, upstream, state=redis.url, upstream={"client_credentials": True}
        ) as cluster,
    ):
        for mirror in cluster.mirrors:
            for place in ("/v2/team/app/manifests/1", layer):
                assert (await mirror.get(place)).status == 401
                assert (await mirror.get(place, Authorization=ann)).status == 200
        for mirror in cluster.mirrors:
            assert (await mirror.get(layer)).status == 401
        async with opened_state(redis.url, Events(), PATIENCE_SECONDS) as state:
            keys = await state._cache.client.keys("*")
    # Each client may know that upstream refuses these names to the mirror itself.
    kinds = Counter(key.split(b":")[2] for key in keys)
    assert kinds.keys() - {b"token"} == {b"refusal"}
    assert kinds[b"token"] == bearer  # that of the mirror itself, without a right


@pytest.fixture
async def state(redis):
    async with opened_state(redis.url, Events(), PATIENCE_SECONDS) as state:
        yield state


async def test_a_value_that_no_replica_has_signed_counts_for_nothing(state):
    own = SharedCaches.of(state, Secret(SECRET.encode()), MemoryTags())
    await own.freshness.put("docker.io app latest", DESCRIPTOR, 60)
    value, left = await own.freshness.lookup("docker.io app latest") or (None, 0)
    assert (value, 0 < left <= 60) == (DESCRIPTOR, True)
    stranger = SharedCaches.of(state, Secret(b"another"), MemoryTags())
    assert await stranger.freshness.lookup("docker.io app latest") is None
    said, _ = await state.lookup("tag:docker.io app latest") or (b"", 0)
    await state.put("tag:docker.io app other", said, 60)  # true, but of another tag
    assert await own.freshness.lookup("docker.io app other") is None


@pytest.mark.parametrize("kind", ["freshness", "refusals"])
async def test_a_value_that_has_expired_does_not_come_back(state, kind):
    """Who can write to Redis could otherwise make a tag mean what it once meant."""
    own, name = SharedCaches.of(state, Secret(SECRET.encode()), MemoryTags()), "docker.io app 1"
    values = getattr(own, kind)
    value = DESCRIPTOR if kind == "freshness" else "404 no such thing"
    await values.put(name, value, 60)
    said, _ = await state.lookup(values._key(name)) or (b"", 0)
    await state.put(values._key(name), said, 86_400)
    _, left = await values.lookup(name) or (None, 0)
    assert 0 < left <= 60
    await values.put(name, value, 0.05)
    said = await state._cache.client.get(f"{PREFIX}:{values._key(name)}")
    await asyncio.sleep(0.06)
    await state.put(values._key(name), said, 86_400)
    assert await values.lookup(name) is None


class NoRedis:
    """A server that answers everything but a greeting with ``answer``."""

    def __init__(self, answer: bytes) -> None:
        self._answer = answer
        self.asked = 0

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while count := (await reader.readline())[1:]:
            words = []
            for _ in range(int(count)):
                length = int((await reader.readline())[1:])
                words.append((await reader.readexactly(length + 2))[:-2])
            greeting = words[0].upper() in {b"PING", b"CLIENT", b"SELECT", b"HELLO"}
            self.asked += not greeting
            writer.write(b"+OK\r\n" if greeting else self._answer)
        writer.close()


@pytest.mark.parametrize(
    "answer",
    [
        b":5\r\n",
        b":-1\r\n",
        b":100000000000\r\n",
        b"$-1\r\n",
        b"*0\r\n",
        b"*2\r\n:1\r\n:1\r\n",
        b"*2\r\n*1\r\n:1\r\n:50000\r\n",
        b"*2\r\n$2\r\n\xff\xff\r\n:9223372036854775807\r\n",
        b"$nonsense\r\n",
        b"*1\r\n" * 5000,
    ],
)
async def test_what_is_no_answer_of_redis_changes_nothing(tmp_path, upstream, caplog, answer):
    """A mirror starts and serves all the same."""
    content, liar = image(random_bytes(200_000)), NoRedis(answer)
    upstream.add_image("library/app", content, "latest")
    async with await asyncio.start_server(liar.handle, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        state = f"redis://127.0.0.1:{port}/0"
        async with replicas(tmp_path, upstream, 1, state=state, state_timeout="400ms") as cluster:
            places = (TAG, f"/v2/library/app/blobs/{content.digests[-1]}", NAMES, NONE)
            answers = [await cluster.mirrors[0].get(place) for place in places]
    assert [each.status for each in answers] == [200, 200, 200, 404]
    assert liar.asked
    assert "Traceback" not in caplog.text


async def test_a_huge_value_in_redis_is_not_read(state):
    client, own = state._cache.client, SharedCaches.of(state, Secret(SECRET.encode()), MemoryTags())
    digest = Digest.of(b"")
    for name in ("refusal:name", f"lease:{digest}", "blocks"):
        await client.set(f"{PREFIX}:{name}", bytes(20 << 20))
    assert await own.refusals.lookup("name") is None
    assert await StatePlace(state).read() == ""
    assert "cmdstat_get" not in await client.info("commandstats")
    with pytest.raises(StateDownError):
        await Leases(state, "http://own", Secret(SECRET.encode())).take(digest)


async def test_a_value_of_another_form_counts_for_nothing(state):
    own = SharedCaches.of(state, Secret(SECRET.encode()), MemoryTags())
    await own.refusals.put("name", "404 no such thing", 60)
    assert (await own.refusals.lookup("name") or ("",))[0] == "404 no such thing"
    for body in (b"", b"[]", b"{}", b'{"mediaType": 1, "digest": "x", "size": 2}', b"\xff"):
        signed = own.freshness._protected("name", b"%d " % (time.time() + 60) + body)
        await state.put("tag:name", signed, 60)
        assert await own.freshness.lookup("name") is None


async def test_a_value_is_forgotten_and_expires(state):
    own = SharedCaches.of(state, Secret(SECRET.encode()), MemoryTags())
    await own.refusals.put("forgotten", "404", 60)
    await own.refusals.forget("forgotten")
    await own.refusals.put("expired", "404", 0.05)
    assert await own.refusals.lookup("forgotten") is None
    async with limit():
        while await own.refusals.lookup("expired") is not None:
            await asyncio.sleep(0.01)


async def test_a_large_listing_is_not_shared(state):
    own = SharedCaches.of(state, Secret(SECRET.encode()), MemoryTags())
    fields = {"next_query": "n=1", "filters_applied": "", "large": False, "hold": None}
    await own.pages.put("small", (b"body\nof two lines", fields), 60)
    assert (await own.pages.lookup("small") or (None,))[0] == (b"body\nof two lines", fields)
    for name, body, large in (("long", bytes(1 << 20), False), ("large", b"", True)):
        await own.pages.put(name, (body, {**fields, "large": large}), 60)
        assert await own.pages.lookup(name) is None


async def test_a_tag_is_recorded_unless_a_push_came_between(state):
    """After a push through this mirror, what upstream said before says nothing about the tag."""
    tags = MemoryTags()
    own = SharedCaches.of(state, Secret(SECRET.encode()), tags)
    for name in ("docker.io app latest", "docker.io app since 1 latest"):
        await own.freshness.put(name, DESCRIPTOR, 60)
        assert await own.freshness.lookup(name) is not None
    assert {name: link.descriptor for name, link in tags.links.items()} == {
        "docker.io app latest": DESCRIPTOR
    }


# Tokens.


@pytest.fixture
async def tokens(upstream):
    """A token service whose tokens the registry takes."""
    upstream.add_image("library/app", image(), "latest")
    service = TokenService()
    async with serving(service.answer) as service.url:
        upstream.guard = service.guard()
        yield service


PATIENCE = {"hang": "400ms", "flush": "30s"}


async def damaged(redis, damage: str) -> None:
    """Let Redis hang, or forget all."""
    if damage == "hang":
        redis.freeze()
        return
    async with opened_state(redis.url, Events(), PATIENCE_SECONDS) as state:
        await state._cache.client.flushall()


async def differing(directory, upstream, redis) -> AsyncIterator[Mirror]:
    """One replica after the other: the second has another secret, the third another login."""
    for number, secret in enumerate((SECRET, SECRET[1:] + "!", SECRET)):
        own = directory / str(number)
        own.mkdir()
        login = {"username": "me", "password": "other" if number == 2 else PASSWORD}
        cluster = Replicas(own, upstream, 1, state=redis.url, upstream=login)
        (own / "secret").write_text(secret)
        try:
            yield await cluster.start()
        finally:
            await cluster.close()


async def content(redis) -> bytes:
    """All keys and values in Redis."""
    async with opened_state(redis.url, Events(), PATIENCE_SECONDS) as state:
        client = state._cache.client
        return b"\n".join(
            [part for key in await client.keys("*") for part in (key, await client.get(key))]
        )


@pytest.mark.parametrize("login", [{}, {"username": "me", "password": PASSWORD}])
async def test_the_replicas_ask_a_token_service_once_and_redis_holds_no_secret(
    tmp_path, upstream, redis, tokens, login
):
    async with replicas(tmp_path, upstream, state=redis.url, upstream=login) as cluster:
        for mirror in cluster.mirrors:
            assert (await mirror.get(TAG)).status == 200
            assert (await mirror.get(NONE)).status == 404
        assert [sent for _, sent in tokens.calls] == [BASIC if login else None]
        held = await content(redis)
    assert b":token:" in held
    basic = BASIC.removeprefix("Basic ")
    for secret in ("token-1", PASSWORD, basic, "repository:library/app:pull", SECRET):
        assert secret.encode() not in held


async def test_a_token_of_another_login_or_under_another_secret_is_not_used(
    tmp_path, upstream, redis, tokens
):
    number = 0
    async for mirror in differing(tmp_path, upstream, redis):
        number += 1
        assert (await mirror.get(f"{NAMES}?n={number}")).status == 200
        assert len(tokens.calls) == number


@pytest.mark.parametrize("damage", ["hang", "flush"])
async def test_without_the_entries_in_redis_each_replica_fetches_its_token(
    tmp_path, upstream, redis, tokens, damage
):
    table = {"state": redis.url, "state_timeout": PATIENCE[damage]}
    async with replicas(tmp_path, upstream, 2, **table) as cluster:
        assert (await cluster.mirrors[0].get(TAG)).status == 200
        await damaged(redis, damage)
        assert (await cluster.mirrors[1].get(TAG)).status == 200
        assert len(tokens.calls) == 2
        redis.resume()


async def test_a_token_that_upstream_refuses_is_replaced_once_for_all_replicas(
    tmp_path, upstream, redis, tokens
):
    async with replicas(tmp_path, upstream, state=redis.url) as cluster:
        first, second, third = cluster.mirrors
        assert (await first.get(TAG)).status == 200
        tokens.good.clear()
        for mirror in (second, third, first):
            assert (await mirror.get(NONE)).status == 404
            assert (await mirror.get(NAMES)).status == 200
            assert len(tokens.calls) == 2


async def test_an_encrypted_token_counts_only_under_its_own_name_and_whole(state):
    own = Tokens(state, Secret(SECRET.encode()), "login")
    await own.put("app", "token", 60)
    value, left = await own.lookup("app") or ("", 0)
    assert (value, 0 < left <= 60) == ("token", True)
    key = own._key
    said, _ = await state.lookup(key("app")) or (b"", 0)
    for wrong in (said[:-1], said[:12], said[:3], b"", bytes([said[0] ^ 1]) + said[1:]):
        await state.put(key("app"), wrong, 60)
        assert await own.lookup("app") is None
    await state.put(key("other"), said, 60)
    assert await own.lookup("other") is None


# Rate limits.


def limited(upstream, kind: str = "manifest", retry_after: str | None = "60") -> None:
    """Let upstream answer 429 to the next request."""
    upstream.add_image("library/app", image(), "latest")
    again = {"Retry-After": retry_after}
    upstream.faults.append(Fault(kind=kind, method="GET", status=429, headers=again))


@pytest.mark.parametrize("retry_after", ["60", None])
async def test_a_replica_does_not_ask_an_upstream_that_told_another_one_429(
    tmp_path, upstream, redis, caplog, retry_after
):
    limited(upstream, retry_after=retry_after)
    async with replicas(tmp_path, upstream, state=redis.url) as cluster:
        earliest = time.time()
        for mirror in cluster.mirrors:
            answer = await mirror.get(TAG)
            assert answer.status == 429
            assert 0 < int(answer.headers["Retry-After"]) <= int(retry_after or 30)
            assert json.loads(answer.body)["errors"][0]["code"] == "TOOMANYREQUESTS"
            until = (await mirror.metrics())[
                'mirror_upstream_ratelimit_until_seconds{upstream="docker.io"}'
            ]
            assert earliest < until <= time.time() + int(retry_after or 30)
        assert upstream.count("manifest", "GET") == 1
        for mirror in cluster.mirrors:  # other kinds of requests are not limited
            assert (await mirror.get(TAG, "HEAD")).status == 200
            assert (await mirror.get(NAMES)).status == 200
    lines = [each.message for each in caplog.records if "rate limited until" in each.message]
    assert len(lines) == 3  # one of each replica


async def test_a_pause_of_all_replicas_ends_with_its_retry_after(tmp_path, upstream, redis):
    limited(upstream, retry_after="1")
    async with replicas(tmp_path, upstream, state=redis.url) as cluster:
        assert (await cluster.mirrors[0].get(TAG)).status == 429
        async with limit():
            for mirror in cluster.mirrors:
                while (await mirror.get(TAG)).status != 200:
                    await asyncio.sleep(0.1)


async def test_a_token_service_that_is_limited_is_asked_by_one_replica(
    tmp_path, upstream, redis, tokens
):
    tokens.status = 429
    async with replicas(tmp_path, upstream, state=redis.url) as cluster:
        for mirror in cluster.mirrors:
            assert (await mirror.get(TAG)).status == 429
        assert len(tokens.calls) == 1


@pytest.mark.parametrize("damage", ["hang", "flush"])
async def test_without_the_entries_in_redis_each_replica_asks_upstream_itself(
    tmp_path, upstream, redis, damage
):
    limited(upstream)
    table = {"state": redis.url, "state_timeout": PATIENCE[damage]}
    async with replicas(tmp_path, upstream, 2, **table) as cluster:
        assert (await cluster.mirrors[0].get(TAG)).status == 429
        await damaged(redis, damage)
        assert (await cluster.mirrors[1].get(TAG)).status == 200
        assert (await cluster.mirrors[0].get(TAG)).status == 429
        redis.resume()


async def test_the_limit_of_another_login_or_under_another_secret_counts_for_nothing(
    tmp_path, upstream, redis
):
    limited(upstream)
    statuses = []
    async for mirror in differing(tmp_path, upstream, redis):
        statuses.append((await mirror.get(TAG)).status)
    assert statuses == [429, 200, 200]
