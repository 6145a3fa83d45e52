"""Three replicas over a real object store and Redis, as processes of their own, under faults.

MIRROR_CLUSTER_MIB sets the size of the blob; 256 gives the figures of docs/cluster.md.
"""

import asyncio
import hashlib
import os
import shutil
import signal
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import pytest

from tests.cluster.replicas import SECRET, Redis, running_redis
from tests.fakes import FakeRegistry, image, random_bytes
from tests.fakes.content import Image
from tests.peers.fault_proxy import FaultProxy
from tests.peers.mirror import MirrorProcess
from tests.peers.requirements import need
from tests.peers.seaweed import BUCKET, Seaweed
from tests.waiting import limit, until

pytestmark = [pytest.mark.e2e]

MIB = 1 << 20
SIZE = int(os.environ.get("MIRROR_CLUSTER_MIB", "24")) * MIB
REPO = "library/app"
EACH = 4  # clients of each replica
#: What upstream has sent and a replica that dies has not passed on.
IN_FLIGHT = 12 * MIB
SMALL = 64 * MIB  # [fill] parallel_from
TAKEN_FOR_DEAD = "does not answer; asking the next place"  # in the log
#: Replicas that did not say whether they lead a download.
UNSAID = 'mirror_tier_requests_total{operation="head",result="error",tier="replicas"}'

TRIES = 20


def pause(fruitless: int) -> float:
    """Seconds before another request; nginx takes replicas that failed twice for dead for 5 s."""
    return min(0.1 * 2.0**fruitless, 2.0)


@dataclass
class Client:
    """Verifies each blob; asks for the rest after a break, as daemons do."""

    session: aiohttp.ClientSession
    url: str
    resumes: bool = True
    first_byte: float = 0.0
    got: int = 0
    errors: list[str] = field(default_factory=list)

    @property
    def broken(self) -> int:
        return len(self.errors)

    async def manifest(self) -> bytes:
        async with self.session.get(f"{self.url}/v2/{REPO}/manifests/1") as answer:
            assert answer.status == 200, await answer.text()
            return await answer.read()

    async def blob(self, digest: str) -> None:
        hasher, self.got = hashlib.sha256(), 0
        started, fruitless = time.monotonic(), 0
        while fruitless < TRIES:
            before = self.got
            try:
                fields = {"Range": f"bytes={self.got}-"} if self.got else {}
                url = f"{self.url}/v2/{REPO}/blobs/{digest}"
                async with self.session.get(url, headers=fields, raise_for_status=True) as answer:
                    async for piece in answer.content.iter_any():
                        self.first_byte = self.first_byte or time.monotonic() - started
                        hasher.update(piece)
                        self.got += len(piece)
                break
            except aiohttp.ClientError as error:
                self.errors.append(f"{error!r} at byte {self.got}")
                fruitless = 0 if self.resumes and self.got > before else fruitless + 1
                if not self.resumes:
                    hasher, self.got = hashlib.sha256(), 0
                await asyncio.sleep(pause(fruitless))
        else:
            raise AssertionError(f"no byte more in {TRIES} requests: {self.errors[-1]}")
        assert f"sha256:{hasher.hexdigest()}" == digest, "a whole wrong blob"


@dataclass
class Cluster:
    directory: Path
    upstream: FakeRegistry
    redis: Redis
    bucket: FaultProxy
    session: aiohttp.ClientSession
    mirrors: list[MirrorProcess] = field(default_factory=list)
    patience: str = "20s"  # with the object store of a busy machine
    state_patience: str = "20s"  # with Redis

    async def start(self) -> None:
        """Start three replicas with empty caches."""
        secret = self.directory / "secret"
        secret.write_text(SECRET)
        mirrors = [
            MirrorProcess(self.directory / f"mirror{number}", {"docker.io": self.upstream.url})
            for number in range(3)
        ]
        peers = [each.url for each in mirrors]
        for each in mirrors:
            shutil.rmtree(each.directory / "cache", ignore_errors=True)
            each.extra = f"""
[cluster]
objects = "s3://{BUCKET}/{self.directory.name}"
endpoint = "{self.bucket.url}"
region = "us-east-1"
first_byte_timeout = "{self.patience}"
state = "{self.redis.url}"
state_timeout = "{self.state_patience}"
secret_file = "{secret}"
peers = {peers!r}
advertise = "{each.url}"
[log]
level = "debug"
"""
        await asyncio.gather(*(asyncio.to_thread(each.start) for each in mirrors))
        self.mirrors = mirrors

    async def stop(self) -> None:
        await asyncio.gather(*(asyncio.to_thread(each.terminate) for each in self.mirrors))
        self.mirrors = []

    async def renewed(self) -> None:
        """Replace all replicas by new ones, whose disks are empty."""
        await self.stop()
        await self.start()

    def clients(self, *of: int) -> list[Client]:
        chosen = of or range(len(self.mirrors))
        return [
            Client(self.session, self.mirrors[number].url) for number in chosen for _ in range(EACH)
        ]

    async def uploaded(self, objects: int) -> None:
        """Wait until the object store has so many objects."""
        stored = 'mirror_uploads_total{result="stored"}'
        await until(lambda: sum(self.figures(stored)) >= objects)

    def once(self) -> float:
        """How often upstream may send a blob: once, unless something busy answered late.

        Then Redis was not asked, or a replica was taken for dead.  A blob for which further
        connections take over has bytes of the first one sent in vain.
        """
        in_vain = IN_FLIGHT / SIZE if SIZE > SMALL else 0
        late = sum(self.figures('mirror_leases_total{result="unknown"}'))
        return 3 if late or self.taken_for_dead() else 1 + in_vain

    def taken_for_dead(self) -> bool:
        """Whether a replica did not get an answer of another one in time."""
        unsaid = sum(self.figures(UNSAID))
        return unsaid > 0 or any(TAKEN_FOR_DEAD in each.output() for each in self.mirrors)

    def figures(self, name: str) -> list[float]:
        return [each.metrics().get(name, 0.0) for each in self.mirrors]

    def times_sent(self, content: Image) -> float:
        """How many times the size of the layer upstream has sent."""
        return self.upstream.sent[content.digests[1]] / SIZE


def report(case: str, cluster: Cluster, content: Image, crowd: list[Client]) -> None:
    worst = max(client.first_byte for client in crowd)
    print(
        f"{case}: upstream {cluster.times_sent(content):.3f} x, worst first byte "
        f"{worst * 1000:.0f} ms, breaks {sum(client.broken for client in crowd)}"
    )


@pytest.fixture(scope="module")
def seaweed(tmp_path_factory) -> Iterator[Seaweed]:
    server = Seaweed(tmp_path_factory.mktemp("seaweed"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
async def cluster(tmp_path, upstream, monkeypatch, seaweed) -> AsyncIterator[Cluster]:
    need("redis-server")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    with running_redis(tmp_path) as redis:
        async with (
            FaultProxy(seaweed.port).running() as bucket,
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session,
        ):
            cluster = Cluster(tmp_path, upstream, redis, bucket, session)
            await cluster.start()
            try:
                yield cluster
            finally:
                bucket.resume()
                await cluster.stop()


@pytest.fixture
def content(upstream) -> Image:
    content = image(random_bytes(SIZE))
    upstream.add_image(REPO, content, "1")
    return content


async def pull(crowd: list[Client], content: Image) -> None:
    async with limit():
        assert {await client.manifest() for client in crowd} == {content.manifest}
        await asyncio.gather(*(client.blob(content.digests[1]) for client in crowd))


async def half_way(
    cluster: Cluster, content: Image
) -> tuple[asyncio.Task[None], list[Client], list[asyncio.Task[None]]]:
    """Have the leader at half of the layer; return its client, and those of the others."""
    cluster.upstream.hold(SIZE // 2)
    digest = content.digests[1]
    first = cluster.clients(0)[0]
    leading = asyncio.create_task(first.blob(digest))
    await until(lambda: first.got)
    crowd = cluster.clients(1, 2)
    following = [asyncio.create_task(client.blob(digest)) for client in crowd]
    await until(lambda: all(client.got for client in crowd))
    await until(lambda: cluster.upstream.sent[digest] >= SIZE // 2)
    return leading, crowd, following


async def test_a_new_cluster_fetches_once_and_the_next_one_not_at_all(cluster, content):
    crowd = cluster.clients()
    await pull(crowd, content)
    report("cold", cluster, content, crowd)
    assert cluster.times_sent(content) <= cluster.once()
    assert sum(client.broken for client in crowd) == 0
    for digest in content.digests:
        await cluster.clients(0)[0].blob(digest)
    await cluster.uploaded(3)

    await cluster.upstream.stop()
    await cluster.renewed()
    crowd = cluster.clients()
    await pull(crowd, content)
    report("warm, disks lost, upstream gone", cluster, content, crowd)
    assert sum(client.broken for client in crowd) == 0


@pytest.mark.long
async def test_the_clients_of_the_others_do_not_notice_that_the_leader_is_killed(cluster, content):
    leading, crowd, following = await half_way(cluster, content)
    await asyncio.to_thread(cluster.mirrors[0].kill)
    cluster.mirrors.pop(0)
    cluster.upstream.release()
    leading.cancel()
    async with limit():
        await asyncio.gather(*following)
    report("leader killed", cluster, content, crowd)
    assert sum(client.broken for client in crowd) == 0
    assert cluster.times_sent(content) <= cluster.once() + IN_FLIGHT / SIZE


@pytest.mark.long
async def test_a_frozen_leader_goes_on_from_the_one_that_took_over(cluster, content):
    leading, crowd, following = await half_way(cluster, content)
    frozen = cluster.mirrors[0].pid
    os.kill(frozen, signal.SIGSTOP)
    try:
        cluster.upstream.release()
        async with limit():
            await asyncio.gather(*following)
    finally:
        os.kill(frozen, signal.SIGCONT)
    await leading
    report("leader frozen", cluster, content, crowd)
    assert sum(client.broken for client in crowd) == 0
    assert cluster.times_sent(content) <= 1.5 + 2 * IN_FLIGHT / SIZE


@pytest.mark.long
@pytest.mark.parametrize("fault", ["flushed", "frozen", "gone"])
async def test_redis_may_fail_in_the_middle(cluster, content, fault):
    if fault == "frozen":
        cluster.state_patience = "400ms"
        await cluster.renewed()
    cluster.upstream.hold(SIZE // 2)
    digest, crowd = content.digests[1], cluster.clients()
    early = crowd if fault == "flushed" else crowd[: 2 * EACH]  # the others join later
    pulls = [asyncio.create_task(client.blob(digest)) for client in early]
    await until(lambda: all(client.got for client in early))
    once = cluster.once()  # later, Redis is not asked on purpose
    if fault == "flushed":
        _, writer = await asyncio.open_connection("127.0.0.1", cluster.redis.port)
        writer.write(b"FLUSHALL\r\n")
        await writer.drain()
        writer.close()
    elif fault == "frozen":
        cluster.redis.freeze()
    else:
        cluster.redis.stop()
    pulls += [asyncio.create_task(client.blob(digest)) for client in crowd if client not in early]
    await until(lambda: all(client.got for client in crowd))
    cluster.upstream.release()
    async with limit():
        await asyncio.gather(*pulls)
    report(f"redis {fault}", cluster, content, crowd)
    assert sum(client.broken for client in crowd) == 0
    assert cluster.times_sent(content) <= (3 if cluster.taken_for_dead() else once)


@pytest.mark.long
@pytest.mark.parametrize("fault", ["hangs", "gone", "cuts", "slow", "flips"])
async def test_the_object_store_may_fail(cluster, content, fault):
    await pull(cluster.clients(), content)
    await cluster.uploaded(2)
    cluster.patience = "500ms" if fault == "hangs" else "20s"
    await cluster.renewed()
    cluster.upstream.sent.clear()
    if fault == "hangs":
        cluster.bucket.hang()
    elif fault == "gone":
        cluster.bucket.close()
    elif fault == "cuts":
        cluster.bucket.cut = SIZE // 2
    elif fault == "slow":
        cluster.bucket.rate = MIB
    else:
        cluster.bucket.flip = SIZE // 2
    crowd = cluster.clients()
    for client in crowd:
        client.resumes = fault != "flips"  # else it has a wrong part already
    await pull(crowd, content)
    report(f"object store {fault}", cluster, content, crowd)
    assert cluster.times_sent(content) <= cluster.once()
    if fault != "flips":
        assert sum(client.broken for client in crowd) == 0
