"""Where the replicas of a cluster get a blob, as their clients and upstream see it."""

import asyncio
import hashlib

import pytest

from mirror.cluster.leases import Leases
from mirror.cluster.secret import Secret
from mirror.cluster.state import opened_state
from mirror.oci.digest import Digest
from tests.cluster.conftest import Events
from tests.cluster.replicas import PATIENCE_SECONDS, SECRET, Replicas, replicas
from tests.fakes import image, random_bytes
from tests.fakes.collector import Collector
from tests.fakes.content import digest_of
from tests.running import eventually
from tests.waiting import limit

pytestmark = [pytest.mark.slow]

MIB = 1 << 20
QUESTIONS = 'mirror_tier_requests_total{operation="lease",result="hit",tier="state"}'
ARRIVED = (
    'mirror_upstream_bytes_total{kind="blob",upstream="docker.io"}',
    'mirror_tier_bytes_total{direction="in",tier="replicas"}',
)
LEASES = 'mirror_leases_total{result="%s"}'
UNANSWERED = 'mirror_tier_requests_total{operation="%s",result="error",tier="replicas"}'


def path(digest: str) -> str:
    return f"/v2/library/app/blobs/{digest}"


async def leases(cluster, result: str) -> float:
    found = [await mirror.metrics() for mirror in cluster.mirrors]
    return sum(each.get(LEASES % result, 0) for each in found)


async def taken_for_dead(cluster) -> float:
    """How often a replica had no answer of another one in time, as on a busy machine."""
    names = [UNANSWERED % operation for operation in ("get", "head")]
    found = [await mirror.metrics() for mirror in cluster.mirrors]
    return sum(each.get(name, 0) for each in found for name in names)


async def herd(cluster, digest: str, each: int = 4) -> list[bytes]:
    """What ``each`` clients of every replica get."""
    asked = [mirror.get(path(digest)) for mirror in cluster.mirrors for _ in range(each)]
    async with limit():
        return [answer.body for answer in await asyncio.gather(*asked)]


@pytest.mark.parametrize("state", ["redis", "frozen", "gone", "none"])
async def test_all_replicas_download_a_blob_once(tmp_path, upstream, redis, state):
    data = random_bytes(8 * MIB)
    digest = upstream.add_blob(data)
    url, patience = "" if state == "none" else redis.url, "400ms" if state == "frozen" else "30s"
    async with replicas(tmp_path, upstream, state=url, state_timeout=patience) as cluster:
        if state == "frozen":
            redis.freeze()
        elif state == "gone":
            redis.stop()
        bodies = await herd(cluster, digest)
        assert all(body == data for body in bodies)
        if not await taken_for_dead(cluster):
            assert upstream.count("blob", "GET") == 1
            assert upstream.sent[digest] == len(data)
        if state != "redis":
            assert await leases(cluster, "unknown") > 0


async def test_the_lease_is_that_of_the_replica_whose_client_came_first(tmp_path, upstream, redis):
    data = random_bytes(4 * MIB)
    digest = upstream.add_blob(data)
    async with replicas(tmp_path, upstream, state=redis.url) as cluster:
        first, second, _ = cluster.mirrors
        assert (await first.get(path(digest))).headers["Cache-Status"].endswith("miss; stored")
        answer = await second.get(path(digest))
        assert answer.body == data
        assert answer.headers["Cache-Status"] == "mirror; fwd=miss; stored; detail=replica"
        assert (await second.get(path(digest))).headers["Cache-Status"] == "mirror; hit"
        assert upstream.count("blob", "GET") == 1
        assert (await leases(cluster, "leads"), await leases(cluster, "follows")) == (1, 1)
        pulls = 'mirror_requests_total{kind="blob",result="hit",upstream="docker.io"}'
        assert pulls not in await first.metrics()  # the other replica was no client


@pytest.mark.long
@pytest.mark.parametrize("state", ["redis", "gone", "none"])
async def test_the_others_go_on_at_the_byte_where_the_leader_died(tmp_path, upstream, redis, state):
    data = random_bytes(16 * MIB)
    digest = upstream.add_blob(data)
    async with replicas(tmp_path, upstream, state="" if state == "none" else redis.url) as cluster:
        leader = 0 if state != "none" else _leader(cluster, digest)
        others = [each for number, each in enumerate(cluster.mirrors) if number != leader]
        upstream.hold(8 * MIB)
        leading = asyncio.create_task(cluster.mirrors[leader].get(path(digest)))
        await eventually(cluster.mirrors[leader], "mirror_clients_waiting", 1)
        asked = [asyncio.create_task(each.get(path(digest))) for each in others]
        await _grown(others, 7 * MIB)
        if state == "gone":
            redis.stop()
        leading.cancel()
        await cluster.stop(leader)
        upstream.release()
        async with limit():
            bodies = [answer.body for answer in await asyncio.gather(*asked)]
        assert bodies == [data, data]
        assert upstream.sent[digest] < 1.4 * len(data), "one of the others goes on"
        ranges = [seen.headers.get("Range") for seen in upstream.seen if seen.kind == "blob"]
        assert None in ranges
        assert all(each is not None for each in ranges[1:])


@pytest.mark.parametrize("breaks", [False, pytest.param(True, marks=pytest.mark.long)])
async def test_a_leader_that_was_overtaken_goes_on_from_the_new_one(
    tmp_path, upstream, redis, breaks
):
    data = random_bytes(32 * MIB)
    digest = upstream.add_blob(data)
    async with replicas(tmp_path, upstream, state=redis.url) as cluster:
        (first, second, third), (former, new, _) = cluster.mirrors, cluster.addresses
        upstream.hold(4 * MIB)
        asked = []
        for each in first, third:
            asked.append(asyncio.create_task(each.get(path(digest))))
            await _grown([each], 3 * MIB)
        await _next_question(first)
        async with opened_state(redis.url, Events(), PATIENCE_SECONDS) as state:
            # As the second replica does when it does not reach the first one.
            leases = Leases(state, new, Secret(SECRET.encode()))
            assert await leases.take(Digest.parse(digest), broken=former) == new
        await _next_question(first)  # it cannot renew its lease
        if breaks:
            await upstream.stop()
            await upstream.start()
        asked.append(asyncio.create_task(second.get(path(digest))))
        await eventually(second, "mirror_clients_waiting", 1)
        upstream.release()
        async with limit():
            answers = await asyncio.gather(*asked)
    assert [answer.body for answer in answers] == [data, data, data]
    assert upstream.sent[digest] < 1.7 * len(data)


async def test_replicas_find_the_leader_when_redis_is_gone(tmp_path, upstream, redis):
    async with replicas(tmp_path, upstream, state=redis.url) as cluster:
        first, *others = cluster.mirrors
        datas = map(random_bytes, range(4 * MIB, 4 * MIB + 100))
        # One whose download another replica leads, if no lease says otherwise.
        data = next(data for data in datas if _leader(cluster, digest_of(data)) != 0)
        digest = upstream.add_blob(data)
        upstream.hold(2 * MIB)
        asked = [asyncio.create_task(first.get(path(digest)))]
        await _grown([first], MIB)
        redis.stop()
        asked += [asyncio.create_task(each.get(path(digest))) for each in others]
        await _grown(others, MIB)
        upstream.release()
        async with limit():
            assert {answer.body for answer in await asyncio.gather(*asked)} == {data}
    assert upstream.sent[digest] == len(data)


@pytest.mark.long
async def test_of_two_leaders_without_redis_one_goes_on_from_the_other(tmp_path, upstream):
    cluster = Replicas(tmp_path, upstream, 2)
    datas = map(random_bytes, range(32 * MIB, 32 * MIB + 100))
    data = next(data for data in datas if _leader(cluster, digest_of(data)) == 0)
    digest = upstream.add_blob(data)
    try:
        asked = []
        upstream.hold(4 * MIB)
        for number in range(2):
            # The second one does not know the first one, as if it did not reach it.
            mirror = await cluster.start(peers=cluster.addresses[number:])
            asked.append(asyncio.create_task(mirror.get(path(digest))))
            await _grown([mirror], 3 * MIB)
        await asyncio.sleep(5)  # upstream is quiet, as for a replica that was frozen
        upstream.release()
        async with limit():
            answers = await asyncio.gather(*asked)
    finally:
        await cluster.close()
    assert [answer.body for answer in answers] == [data, data]
    assert upstream.sent[digest] < 1.7 * len(data)


@pytest.mark.parametrize("others", [0, 2])
async def test_a_replica_that_ends_soon_leaves_new_downloads_to_the_others(
    tmp_path, upstream, redis, others
):
    data, stopping = random_bytes(MIB), asyncio.Event()
    digest = upstream.add_blob(data)
    cluster = Replicas(tmp_path, upstream, 3, state=redis.url)
    try:
        ending = await cluster.start(stopping=stopping)
        for _ in range(others):
            await cluster.start()
        stopping.set()
        answer = await ending.get(path(digest))
        assert answer.body == data
        # Without another replica, it still serves its clients.
        assert answer.headers["Cache-Status"].endswith("detail=replica") == bool(others)
        assert await leases(cluster, "hands_over") == 1
        assert await leases(cluster, "leads") == (1 if others else 0)
        assert upstream.count("blob", "GET") == 1
    finally:
        await cluster.close()


async def _next_question(mirror) -> None:
    """Wait until a mirror has asked Redis about a lease once more."""
    asked = (await mirror.metrics())[QUESTIONS]
    async with limit():
        while (await mirror.metrics())[QUESTIONS] == asked:
            await asyncio.sleep(0.05)


async def _grown(mirrors, size: int) -> None:
    """Wait until the downloads of all mirrors have so many bytes."""
    for mirror in mirrors:
        async with limit():
            while await _arrived(mirror) < size:
                await asyncio.sleep(0.05)


async def _arrived(mirror) -> float:
    """The bytes of blobs that came from upstream or from other replicas.

    mirror_cache_bytes has the whole size of a download from its start.
    """
    figures = await mirror.metrics()
    return sum(figures.get(name, 0.0) for name in ARRIVED)


async def test_downloads_of_one_replica_for_the_other_do_not_wait_for_each_other(
    tmp_path, upstream
):
    """Each replica may have one download, and both wait for some of the other one."""
    datas = {upstream.add_blob(data): data for data in map(random_bytes, range(MIB, MIB + 16))}
    cluster = Replicas(tmp_path, upstream, 2)
    try:
        for _ in range(2):
            await cluster.start(limits={"downloads": 1, "queue_timeout": "1h"})
        asked = [each.get(path(digest)) for digest in datas for each in cluster.mirrors]
        async with limit():
            bodies = [answer.body for answer in await asyncio.gather(*asked)]
    finally:
        await cluster.close()
    assert bodies == [data for data in datas.values() for _ in range(2)]
    assert upstream.count("blob", "GET") == 16


async def test_a_trace_leads_from_a_replica_to_the_one_that_downloads(tmp_path, upstream):
    data = random_bytes(MIB)
    digest = upstream.add_blob(data)
    async with Collector() as collector:
        cluster = Replicas(tmp_path, upstream, 2)
        try:
            for _ in range(2):
                await cluster.start(tracing={"endpoint": collector.endpoint})
            order = sorted(cluster.addresses, key=lambda each: _weight(each, digest))
            follower = cluster.mirrors[cluster.addresses.index(order[1])]
            assert (await follower.get(path(digest))).body == data
        finally:
            await cluster.close()
    asked = collector.one("replica")
    (answered,) = collector.below(asked)
    leading, following = collector.named("fill")
    if leading.parent != answered.id:
        leading, following = following, leading
    assert following.id == asked.parent
    assert leading.attributes["mirror.place"] == "upstream"
    assert following.attributes["mirror.place"] == "replica"


def _leader(cluster, digest: str) -> int:
    """The number of the replica that leads if no lease says otherwise."""
    return min(
        range(len(cluster.addresses)), key=lambda each: _weight(cluster.addresses[each], digest)
    )


def _weight(address: str, digest: str) -> bytes:
    return hashlib.sha256(f"{address} {digest}".encode()).digest()


async def test_replicas_that_disagree_about_the_leader_do_not_wait_for_each_other(
    tmp_path, upstream
):
    """Each knows only one other replica, so that some ask one that asks another one."""
    digests = {upstream.add_blob(data): data for data in map(random_bytes, range(MIB, MIB + 8))}
    cluster = Replicas(tmp_path, upstream, 3)
    try:
        for number in range(3):
            await cluster.start(peers=[cluster.addresses[(number + 1) % 3]])
        for digest, data in digests.items():
            assert set(await herd(cluster, digest, each=1)) == {data}
    finally:
        await cluster.close()


async def test_no_layer_is_fetched_ahead_that_a_client_may_ask_another_replica_for(
    tmp_path, upstream, redis
):
    app = image(*(random_bytes(MIB, seed) for seed in range(4)))
    upstream.add_image("library/app", app, "1")
    async with replicas(tmp_path, upstream, 2, state=redis.url) as cluster:
        one, _ = cluster.mirrors
        assert (await one.get("/v2/library/app/manifests/1")).status == 200
        upstream.hold(1 << 16)
        pull = asyncio.create_task(one.get(path(app.digests[1])))
        await eventually(one, ARRIVED[0], 1 << 16)
        for _ in range(10):
            await one.get("/v2/")  # the turns in which others would begin
        upstream.release()
        assert (await pull).body == app.blobs[1]
        assert upstream.count("blob", "GET") == 1
