"""Leases in a real Redis."""

import asyncio
from contextlib import asynccontextmanager

import pytest

from mirror.cluster.leases import Leases, opened_leases
from mirror.cluster.secret import Secret
from mirror.cluster.state import StateDownError, opened_state
from mirror.oci.digest import Digest
from tests.cluster.conftest import Events
from tests.cluster.replicas import PATIENCE_SECONDS
from tests.waiting import limit, until

pytestmark = [pytest.mark.slow]

A, B, C = "http://a:5000", "http://b:5000", "http://c:5000"
DIGEST = Digest.of(b"blob")


@asynccontextmanager
async def leases(redis, own: str, secret: bytes = b"secret"):
    async with (
        opened_state(redis.url, Events(), PATIENCE_SECONDS) as state,
        opened_leases(state, own, Secret(secret)) as found,
    ):
        yield found


async def key(redis) -> tuple[bytes | None, float]:
    """The lease as it is in Redis, and its remaining life in seconds."""
    async with opened_state(redis.url, Events(), PATIENCE_SECONDS) as state:
        found = await state.lookup(f"lease:{DIGEST}")
    return found or (None, 0.0)


async def test_the_first_replica_leads_until_it_gives_the_lease_back(redis):
    async with leases(redis, A) as a, leases(redis, B) as b:
        assert [await a.take(DIGEST), await b.take(DIGEST), await a.take(DIGEST)] == [A, A, A]
        a.release(DIGEST, stored=False)
        async with limit():
            while await b.take(DIGEST) != B:
                await asyncio.sleep(0.01)
        assert await a.take(DIGEST) == B


async def test_only_the_holder_whose_connection_broke_is_replaced(redis):
    async with leases(redis, A) as a, leases(redis, B) as b, leases(redis, C) as c:
        await a.take(DIGEST)
        assert await b.take(DIGEST, broken=A) == B
        assert await c.take(DIGEST, broken=A) == B
        assert await a.take(DIGEST) == B


async def test_a_lease_ends_soon_and_names_the_replica_that_has_the_blob_for_longer(redis):
    async with leases(redis, A) as a:
        await a.take(DIGEST)
        _, left = await key(redis)
        assert 0 < left <= 10
        a.release(DIGEST, stored=True)
        async with limit():
            while (await key(redis))[1] <= 10:
                await asyncio.sleep(0.01)
        assert (await key(redis))[1] <= 60


async def test_no_lease_is_left_when_a_replica_ends(redis):
    async with leases(redis, A) as a:
        await a.take(DIGEST)
    assert await key(redis) == (None, 0.0)


async def test_a_lease_is_renewed_and_comes_back_after_a_loss_of_all_keys(redis):
    async with opened_state(redis.url, Events(), PATIENCE_SECONDS) as state, leases(redis, A) as a:
        await a.take(DIGEST)
        await state.forget(f"lease:{DIGEST}")
        async with limit():
            while await state.lookup(f"lease:{DIGEST}") is None:
                await asyncio.sleep(0.1)


async def test_a_replica_that_was_frozen_asks_whether_it_still_holds_a_lease(redis):
    now = 0.0
    async with opened_state(redis.url, Events(), PATIENCE_SECONDS) as state, leases(redis, B) as b:
        a = Leases(state, A, Secret(b"secret"), lambda: now)  # never renewed in the background
        await a.take(DIGEST)
        now += 60
        assert await a.keeps(DIGEST)
        await b.take(DIGEST, broken=A)
        now += 60
        assert not await a.keeps(DIGEST)
        assert await b.take(DIGEST) == B
        await a.take(other := Digest.of(b"other"))
        redis.stop()
        now += 60
        assert not await a.keeps(DIGEST)
        with pytest.raises(StateDownError):
            await a.keeps(other)


async def test_a_lease_that_no_replica_has_signed_counts_for_nothing(redis):
    async with opened_state(redis.url, Events(), PATIENCE_SECONDS) as state, leases(redis, A) as a:
        await state.put(f"lease:{DIGEST}", b"http://169.254.169.254 0000", 60)
        with pytest.raises(StateDownError):
            await a.take(DIGEST)
    async with leases(redis, B, b"another secret") as stranger, leases(redis, A) as a:
        other = Digest.of(b"other")
        assert await stranger.take(other) == B
        with pytest.raises(StateDownError):
            await a.take(other)


@pytest.mark.long
async def test_a_server_that_hangs_is_asked_once_until_it_answers_again(redis, caplog):
    async with opened_state(redis.url, Events(), 3.0) as state:
        await state.put("name", b"value", 60)
        redis.freeze()
        assert await state.lookup("name") is None
        assert not state.availability.up
        await until(lambda: state.availability.problem)
        redis.resume()
        async with limit():
            await state.availability.wait()
        assert await state.lookup("name") is not None
    assert [each.message.partition(":")[0].partition(",")[0] for each in caplog.records] == [
        "redis at 127.0.0.1 does not answer",
        "redis at 127.0.0.1 answers again",
    ]


async def test_the_password_of_the_server_is_in_no_log_line(redis, caplog):
    redis.stop()
    url = redis.url.replace("redis://", "redis://user:hunter2@")
    async with opened_state(url, Events(), PATIENCE_SECONDS) as state:
        assert await state.lookup("name") is None
    assert "hunter2" not in caplog.text


async def test_many_questions_at_once_share_the_connections(redis):
    async with opened_state(redis.url, Events(), PATIENCE_SECONDS) as state:
        await asyncio.gather(*(state.put(str(each), b"%d" % each, 60) for each in range(200)))
        found = await asyncio.gather(*(state.lookup(str(each)) for each in range(200)))
    assert [value for value, _ in filter(None, found)] == [b"%d" % each for each in range(200)]
