"""A cooldown is that of the whole cluster: what one replica has seen, the others know."""

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from mirror.admin.commands import released
from tests.cluster.replicas import Replicas
from tests.cluster.test_values import content
from tests.fakes.clock import Clock
from tests.fakes.content import OCI_INDEX, digest_of, index
from tests.pull.test_cooldown import DAY, REPO, RULE, A, B, C, meaning
from tests.running import Mirror, configured
from tests.waiting import limit

pytestmark = pytest.mark.slow

Start = Callable[..., Awaitable[Mirror]]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def start(tmp_path, upstream, redis, clock) -> AsyncIterator[Start]:
    """Starts the next replica of a cluster with a rule; tags are asked for each time."""
    upstream.add_image(REPO, A, "1")
    cluster = Replicas(tmp_path, upstream, 3, state=redis.url)

    async def start(**rule: Any) -> Mirror:
        return await cluster.start(clock=clock, policy=[RULE | rule], tags={"max_age": "0s"})

    try:
        yield start
    finally:
        await cluster.close()


async def test_a_cooldown_begins_once_for_all_replicas(start, upstream, clock):
    first, second = await start(), await start()
    assert await meaning(first) == A.digest
    upstream.add_image(REPO, B, "1")
    assert await meaning(first) == A.digest
    clock.pass_by(2 * DAY)
    assert await meaning(second) == A.digest, "also where the tag was never asked for"
    third = await start()
    assert await meaning(third) == A.digest
    clock.pass_by(1 * DAY)
    assert [await meaning(each) for each in (third, second, first)] == [B.digest] * 3


async def test_what_one_replica_lets_pass_is_pulled_by_digest_from_the_next(start, upstream, clock):
    """As a client does behind a load balancer: the tag here, its digest and its parts there."""
    both, rule = index(B, C), {"unseen": "deny", "digests": "check"}
    for each in (B, C):
        upstream.add_image(REPO, each)
    upstream.add_manifest(REPO, both, OCI_INDEX, "2")
    first, second = await start(**rule), await start(**rule)
    assert "waits 3 d" in await meaning(first, "2")
    assert "waits 3 d" in await meaning(second, B.digest)
    clock.pass_by(3 * DAY)
    assert await meaning(first, "2") == digest_of(both)
    for digest in (digest_of(both), B.digest, C.digest):
        assert await meaning(second, digest) == digest


async def test_a_release_is_for_all_replicas(start, tmp_path, upstream):
    first, second = await start(), await start()
    assert await meaning(first) == A.digest
    upstream.add_image(REPO, B, "1")
    for each in (first, second):
        assert await meaning(each) == A.digest
    await released(configured(tmp_path / "cache0", {"docker.io": upstream.url}), ["app:1"])
    for each in (first, second):
        assert await meaning(each) == B.digest


async def test_each_replica_goes_on_by_itself_without_redis(start, upstream, redis, clock):
    first, second = await start(), await start()
    for each in (first, second):
        assert await meaning(each) == A.digest
    redis.stop()
    upstream.add_image(REPO, B, "1")
    for each in (first, second):
        assert await meaning(each) == A.digest
    clock.pass_by(3 * DAY)
    for each in (first, second):
        assert await meaning(each) == B.digest


async def test_redis_that_forgot_all_is_told_again(start, upstream, redis, clock):
    first = await start()
    assert await meaning(first) == A.digest
    upstream.add_image(REPO, B, "1")
    assert await meaning(first) == A.digest
    redis.stop()
    redis.start()
    async with limit():  # until the mirror asks Redis again
        while not await content(redis):
            assert await meaning(first) == A.digest
    clock.pass_by(2 * DAY)
    second = await start()
    assert await meaning(second) == A.digest
    clock.pass_by(1 * DAY)
    assert await meaning(second) == B.digest


async def test_redis_shows_neither_images_nor_digests(start, redis):
    first = await start()
    assert await meaning(first) == A.digest
    said = await content(redis)
    assert b"mirror:1:seen:" in said
    assert b"mirror:1:means:" in said
    assert b"library" not in said
    assert A.digest.encode() not in said
