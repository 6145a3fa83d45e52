"""Replicas behind nginx (config/nginx/cluster.conf) that restart, die, or are cut off.

CLUSTER_KILLS=50 kills so often; CLUSTER_SEED repeats a run.
"""

import asyncio
import hashlib
import itertools
import os
import random
import shutil
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import aiohttp
import obstore
import pytest
from obstore.store import S3Store
from redis.asyncio import Redis

from tests.e2e import test_cluster as replicas
from tests.e2e.test_cluster import (
    MIB,
    REPO,
    TAKEN_FOR_DEAD,
    TRIES,
    Client,
    Cluster,
    half_way,
    pause,
    report,
)
from tests.e2e.test_several_mirrors import NGINX
from tests.fakes import FakeRegistry, image, random_bytes
from tests.fakes.content import Image
from tests.peers.dockerd import Dockerd
from tests.peers.fault_proxy import FaultProxy
from tests.peers.layers import estargz_layer, image_of
from tests.peers.mirror import MirrorProcess
from tests.peers.namespace import Namespace
from tests.peers.process import Process, accepts, free_port
from tests.peers.requirements import need
from tests.peers.seaweed import BUCKET, Seaweed
from tests.waiting import limit, until

pytestmark = [pytest.mark.e2e, pytest.mark.long]

cluster, content, seaweed = replicas.cluster, replicas.content, replicas.seaweed  # fixtures

CONF = (Path(__file__).parents[2] / "config" / "nginx" / "cluster.conf").read_text()
CLIENTS = 12
IMAGES = 80
KILLS = int(os.environ.get("CLUSTER_KILLS", "10"))
MOST_LIFE = 2.0  # seconds between two kills
MULTIPART = 9 * MIB  # larger than one part of an upload
UNKNOWN = 'mirror_leases_total{result="unknown"}'
LEASE_MILLISECONDS = 60_000  # the most that a lease lasts


@asynccontextmanager
async def front(cluster: Cluster) -> AsyncIterator[str]:
    """Run nginx in front of all replicas, each in turn; yield its URL."""
    need("nginx")
    port, directory = free_port(), cluster.directory
    conf = CONF.replace("listen 5000", f"listen 127.0.0.1:{port}")
    for number, mirror in enumerate(cluster.mirrors, 1):
        conf = conf.replace(f"mirror{number}:5000", f"127.0.0.1:{mirror.port}")
    (directory / "mirror.conf").write_text(conf)
    (directory / "nginx.conf").write_text(NGINX.format(directory=directory))
    command = ["nginx", "-e", f"{directory}/errors", "-c", f"{directory}/nginx.conf"]
    nginx = Process(command, directory / "nginx")
    try:
        await asyncio.to_thread(nginx.wait_until, lambda: accepts(port))
        yield f"http://127.0.0.1:{port}"
    finally:
        nginx.terminate()


async def restarted(cluster: Cluster, mirrors: Sequence[MirrorProcess]) -> None:
    """Replace all replicas by these, which may be the same ones with another configuration."""
    await cluster.stop()
    await asyncio.gather(*(asyncio.to_thread(each.start) for each in mirrors))
    cluster.mirrors = list(mirrors)


class Load:
    """Clients that pull random images until the end of the context; each pull must succeed."""

    def __init__(self, session: aiohttp.ClientSession, url: str, images: list[Image]) -> None:
        self.clients = [Client(session, url) for _ in range(CLIENTS)]
        self.images = images
        self.pulls = 0
        self._ending = False

    @asynccontextmanager
    async def running(self, seed: int) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as group:
            for number, client in enumerate(self.clients):
                group.create_task(self._pull(client, random.Random(seed + number)))
            try:
                yield
            finally:
                self._ending = True

    def has_more_than(self, pulls: int) -> bool:
        return self.pulls > pulls

    async def _pull(self, client: Client, rng: random.Random) -> None:
        while not self._ending:
            chosen = rng.choice(self.images)
            assert await self._manifest(client, self.images.index(chosen)) == chosen.manifest
            for digest in chosen.digests:
                await client.blob(digest)
            self.pulls += 1

    async def _manifest(self, client: Client, tag: int) -> bytes:
        url = f"{client.url}/v2/{REPO}/manifests/{tag}"
        for fruitless in range(TRIES):
            try:
                async with client.session.get(url, raise_for_status=True) as answer:
                    return await answer.read()
            except aiohttp.ClientError as error:
                client.errors.append(repr(error))
                await asyncio.sleep(pause(fruitless))
        raise AssertionError(f"{url} failed {TRIES} times: {client.errors[-1]}")


def add_images(upstream: FakeRegistry, sizes: Iterable[int]) -> list[Image]:
    images = [image(random_bytes(size, seed)) for seed, size in enumerate(sizes)]
    for tag, each in enumerate(images):
        upstream.add_image(REPO, each, str(tag))
    return images


def times_sent(upstream: FakeRegistry) -> float:
    """How many times the size of all blobs that were pulled upstream has sent."""
    return upstream.sent.total() / sum(len(upstream.blobs[digest]) for digest in upstream.sent)


def sent_again(upstream: FakeRegistry) -> int:
    """How many blobs upstream has sent more than once, or in part again."""
    return sum(sent > len(upstream.blobs[digest]) for digest, sent in upstream.sent.items())


async def uploaded(cluster: Cluster) -> None:
    """Wait until nothing is left to upload."""
    await until(lambda: not sum(cluster.figures("mirror_uploads_waiting")))


def opened_bucket(seaweed: Seaweed) -> S3Store:
    return S3Store(
        BUCKET, endpoint=seaweed.url, skip_signature=True, client_options={"allow_http": True}
    )


def names_in_bucket(cluster: Cluster, seaweed: Seaweed) -> set[str]:
    """Return the last part of the path of each object: of blobs and manifests the digest."""
    pages = obstore.list(opened_bucket(seaweed), prefix=cluster.directory.name)
    return {each["path"].rpartition("/")[2] for page in pages for each in page}


async def until_in_bucket(
    cluster: Cluster, seaweed: Seaweed, tag: str, content: Image, largest: int = 1 << 40
) -> None:
    """Wait until a tag, its manifest and its blobs up to a size are in the object store."""
    blobs = zip(content.digests, content.blobs, strict=True)
    digests = [digest for digest, data in blobs if len(data) <= largest] + [content.digest]
    wanted = {f"app:{tag}", *(digest.partition(":")[2] for digest in digests)}
    async with limit():
        while not wanted <= await asyncio.to_thread(names_in_bucket, cluster, seaweed):
            await asyncio.sleep(0.1)


async def test_no_pull_fails_while_all_replicas_restart(cluster, upstream):
    images = add_images(upstream, [MIB + number for number in range(IMAGES)])
    upstream.rate = 4 * MIB
    await restarted(
        cluster, [replace(mirror, server='lame_duck = "5s"') for mirror in cluster.mirrors]
    )
    unknown = 0.0  # downloads for which a busy Redis was not asked
    dead = 0  # answers of a replica that came too late, or not because it restarts
    async with front(cluster) as url:
        load = Load(cluster.session, url, images)
        async with load.running(1):
            for mirror in cluster.mirrors:
                pulled = load.pulls
                await until(partial(load.has_more_than, pulled + CLIENTS))
                unknown += mirror.metrics().get(UNKNOWN, 0)
                await asyncio.to_thread(mirror.terminate)
                dead += mirror.output().count(TAKEN_FOR_DEAD)
                await asyncio.to_thread(mirror.start)
    unknown += sum(cluster.figures(UNKNOWN))
    dead += sum(mirror.output().count(TAKEN_FOR_DEAD) for mirror in cluster.mirrors)
    sent, repeated = times_sent(upstream), sent_again(upstream)
    print(
        f"rolling restart: {load.pulls} pulls, upstream {sent:.3f} x, {repeated} blobs again, "
        f"{unknown:.0f} unknown, {dead} taken for dead"
    )
    assert [client.errors for client in load.clients] == [[]] * CLIENTS
    # On a busy machine a replica takes one that answers late for dead, and downloads by itself.
    assert repeated <= len(cluster.mirrors) + unknown + dead


@pytest.mark.timeout(1800)
async def test_kills_at_random_leave_nothing_wrong(cluster, upstream, seaweed):
    seed = int(os.environ.get("CLUSTER_SEED", "1"))
    rng = random.Random(seed)
    images = add_images(upstream, [*[MIB + n for n in range(6 * KILLS)], *[MULTIPART] * KILLS])
    upstream.rate = 4 * MIB
    async with front(cluster) as url:
        load = Load(cluster.session, url, images)
        async with load.running(seed):
            for _ in range(KILLS):
                await asyncio.sleep(rng.uniform(0, MOST_LIFE))
                mirror = rng.choice(cluster.mirrors)
                await asyncio.to_thread(mirror.kill)
                await asyncio.to_thread(mirror.start)
    await uploaded(cluster)
    broken = sum(client.broken for client in load.clients)
    bucket = opened_bucket(seaweed)
    objects = [
        each["path"]
        for page in obstore.list(bucket, prefix=f"{cluster.directory.name}/blobs")
        for each in page
    ]
    for path in objects:
        data = bytes(await (await obstore.get_async(bucket, path)).bytes_async())
        assert hashlib.sha256(data).hexdigest() == path.rpartition("/")[2]
    leases = await leases_left(cluster.redis.port)
    async with cluster.session.get(f"{seaweed.url}/{BUCKET}?uploads") as answer:
        unfinished = (await answer.text()).count("<UploadId>")  # for the rule of the bucket
    print(
        f"{KILLS} kills: {load.pulls} pulls, upstream {times_sent(upstream):.3f} x, "
        f"breaks {broken}, {len(objects)} objects, {unfinished} unfinished uploads, "
        f"{len(leases)} leases of at most {max(leases, default=0)} ms"
    )
    assert objects
    assert all(0 < left <= LEASE_MILLISECONDS for left in leases), "they end by themselves"


async def leases_left(port: int) -> list[int]:
    """Return how long each lease in Redis lasts, in milliseconds; -1: for ever."""
    async with Redis(port=port) as redis:
        names = [name async for name in redis.scan_iter("mirror:1:lease:*")]
        return [left for name in names if (left := await redis.pttl(name)) != -2]


async def test_a_replica_that_is_cut_off_serves_and_heals(cluster, content, upstream, seaweed):
    need("ip", "tc", root=True)
    away = Namespace()
    async with AsyncExitStack() as stack:
        stack.enter_context(away.existing())
        ways = [
            FaultProxy(upstream.port, away.steady_here),
            FaultProxy(cluster.redis.port, away.cuttable_here),
            FaultProxy(seaweed.port, away.cuttable_here),
        ]
        for way in ways:
            await stack.enter_async_context(way.running())
        stack.push_async_callback(cluster.stop)
        await restarted(cluster, with_one_away(cluster, away, *ways))
        leading, crowd, following = await half_way(cluster, content)
        away.cut()
        upstream.release()
        async with limit():
            await asyncio.gather(leading, *following)
        report("a replica cut off", cluster, content, crowd)
        assert sum(client.broken for client in crowd) == 0
        assert cluster.times_sent(content) <= 2
        layer = await pulled_image(cluster, 0)
        print(f"... and a pull of all meanwhile: upstream {upstream.sent[layer] / MIB:.3f} x")
        assert upstream.sent[layer] <= 2 * MIB

        away.heal()
        async with limit():
            await healed(cluster)


def with_one_away(
    cluster: Cluster, away: Namespace, upstream: FaultProxy, redis: FaultProxy, bucket: FaultProxy
) -> list[MirrorProcess]:
    """The replicas, the first one behind a link that can be cut: it reaches upstream by another."""
    first, *others = cluster.mirrors
    places = {first.url: f"http://{away.cuttable}:{first.port}"}
    places |= {each.url: f"http://{away.cuttable_here}:{each.port}" for each in others}

    def moved(extra: str, places: dict[str, str]) -> str:
        for here, there in places.items():
            extra = extra.replace(here, there)
        return extra

    own = {
        cluster.redis.url: f"redis://{redis.host}:{redis.port}/0",
        cluster.bucket.url: bucket.url,
    }
    return [
        replace(
            first,
            upstreams={"docker.io": upstream.url},
            extra=moved(first.extra, places | own),
            listen="0.0.0.0",  # of the namespace
            host=away.steady,
            within=away.within,
        ),
        *(replace(each, extra=moved(each.extra, places), listen="0.0.0.0") for each in others),
    ]


async def pulled_image(cluster: Cluster, number: int) -> str:
    """Have all clients pull a new layer; return its digest."""
    fresh = image(random_bytes(MIB, number))
    cluster.upstream.add_image(REPO, fresh, f"fresh{number}")
    async with limit():
        await asyncio.gather(*(client.blob(fresh.digests[1]) for client in cluster.clients()))
    return fresh.digests[1]


async def healed(cluster: Cluster) -> None:
    """Wait until all replicas together download a new layer once."""
    for number in itertools.count(1):
        if cluster.upstream.sent[await pulled_image(cluster, number)] == MIB:
            return
        await asyncio.sleep(0.5)


async def test_docker_pulls_through_nginx_while_a_replica_dies(
    tmp_path_factory, cluster, upstream, seaweed
):
    need("dockerd", "docker", "containerd", "runc", root=True)
    first, content = (
        image_of([estargz_layer({f"noise{n}": os.urandom(MIB << n)}) for n in range(4)], ["true"])
        for _ in range(2)
    )
    upstream.add_image(REPO, first, "1")
    upstream.add_image(REPO, content, "2")
    mirrors = cluster.mirrors.copy()
    async with front(cluster) as url:
        directory = tmp_path_factory.mktemp("docker")  # containerd's sockets have short names only
        docker = Dockerd(directory, url)
        await asyncio.to_thread(docker.start)
        try:
            await asyncio.to_thread(docker.docker, "pull", "app:1")
            print(f"docker pull, cold: upstream {times_sent(upstream):.3f} x")
            assert times_sent(upstream) <= cluster.once()
            await until_in_bucket(cluster, seaweed, "1", first)
            upstream.sent.clear()
            upstream.hold(4 * MIB)
            pulling = asyncio.create_task(asyncio.to_thread(docker.docker, "pull", "app:2"))
            await until(lambda: all(upstream.sent[digest] for digest in content.digests))
            # What only the killed replica has would be lost with upstream.
            await until_in_bucket(cluster, seaweed, "2", content, 4 * MIB)
            fills = cluster.figures("mirror_fills_in_progress")
            await asyncio.to_thread(cluster.mirrors.pop(fills.index(max(fills))).kill)
            upstream.release()
            await pulling
            print(f"... while a replica is killed: upstream {times_sent(upstream):.3f} x")
            await until_in_bucket(cluster, seaweed, "2", content)
            await upstream.stop()
            await cluster.stop()  # or they write while their directories go
            for mirror in mirrors:
                shutil.rmtree(mirror.directory / "cache")
            await restarted(cluster, mirrors)
            for tag in "12":
                for command in ("rmi", "pull"):
                    await asyncio.to_thread(docker.docker, command, f"app:{tag}")
        finally:
            await asyncio.to_thread(docker.stop)
