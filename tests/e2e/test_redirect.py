"""Real clients that the mirror sends to a real object store, which checks signatures."""

import http.client
import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from mirror.cluster.objects import opened_bucket
from mirror.cluster.upkeep import NoEvents
from mirror.cluster.uploads import path_of
from mirror.config.cluster import ClusterConfig
from mirror.oci.digest import Digest
from mirror.store.local.layout import BLOBS, ObjectKey
from tests.fakes.content import digest_of, image, random_bytes
from tests.peers.containerd import Containerd
from tests.peers.distribution import Distribution
from tests.peers.dockerd import Dockerd
from tests.peers.go_programs import go_program
from tests.peers.image import push, push_image
from tests.peers.mirror import MirrorProcess
from tests.peers.requirements import need
from tests.peers.seaweed import BUCKET, Seaweed
from tests.waiting import LIMIT_SECONDS, until

pytestmark = [pytest.mark.e2e, pytest.mark.long, pytest.mark.timeout(1800)]

MIB = 1 << 20
KEYS = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
SIGNED = 'mirror_tier_requests_total{operation="sign",result="hit",tier="objects"}'
STORED = 'mirror_uploads_total{result="stored"}'
SERVED = 'mirror_served_bytes_total{kind="blob",upstream="docker.io"}'


@dataclass
class Site:
    """A registry as Docker Hub, a bucket, a mirror that has filled it and one with an empty disk.

    The second one redirects all clients; they know the object store by another name than it.
    """

    directory: Path
    hub: Distribution
    bucket: Seaweed
    mirrors: list[MirrorProcess]
    cluster: ClusterConfig

    @property
    def mirror(self) -> MirrorProcess:
        return self.mirrors[1]

    def redirected(self) -> int:
        return int(self.mirror.metrics().get(SIGNED, 0))

    def served(self) -> int:
        """The bytes of blobs that the second mirror has sent itself."""
        return int(self.mirror.metrics().get(SERVED, 0))

    def asked_from(self, client: str, path: str) -> int:
        """The status of the second mirror's answer to a client with this address."""
        source = (client, 0)
        connection = http.client.HTTPConnection("127.0.0.1", self.mirror.port, 120, source)
        connection.request("GET", path)
        status = connection.getresponse().status
        connection.close()
        return status

    async def fill(self, repository: str, objects: int) -> None:
        """Have the first mirror upload an image; then upstream is not needed for it."""
        before = self.mirrors[0].metrics().get(STORED, 0)
        name = f"127.0.0.1:{self.mirrors[0].port}/{repository}:1"
        crane("pull", name, str(self.directory / "first.tar"))
        await until(lambda: self.mirrors[0].metrics().get(STORED, 0) - before >= objects)


def crane(*arguments: str) -> str:
    command = [str(go_program("crane")), *arguments]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False
    )
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    need("docker-registry")
    go_program("crane")
    directory = tmp_path_factory.mktemp("site")
    hub, bucket = Distribution(directory / "hub"), Seaweed(directory / "seaweed", KEYS)
    table = f"""
[cluster]
objects = "s3://{BUCKET}/mirror"
endpoint = "{bucket.url}"
first_byte_timeout = "20s"
"""
    redirecting = f"""
redirect_networks = ["127.0.0.0/8"]
redirect_endpoint = "http://localhost:{bucket.port}"
"""
    upstreams = {"docker.io": hub.url}
    mirrors = [
        MirrorProcess(directory / "first", upstreams, table),
        MirrorProcess(directory / "second", upstreams, table + redirecting),
    ]
    with pytest.MonkeyPatch.context() as patch:
        for name, value in KEYS.items():
            patch.setenv(name, value)
        started: list[Distribution | Seaweed | MirrorProcess] = [hub, bucket, *mirrors]
        for each in started:
            each.start()
        config = ClusterConfig(objects=f"s3://{BUCKET}/mirror", endpoint=bucket.url)
        yield Site(directory, hub, bucket, mirrors, config)
    for mirror in mirrors:
        mirror.terminate()
    bucket.stop()
    hub.stop()


async def test_docker_pulls_and_runs_an_image_from_the_object_store(site: Site) -> None:
    need("dockerd", "docker", "containerd", "runc", "busybox", root=True)
    push_image(site.hub.url, "library/demo", "1", "hello", [24 * MIB, 3 * MIB, 1000])
    await site.fill("library/demo", 7)
    docker = Dockerd(site.directory / "docker", site.mirror.url)
    docker.start()
    try:
        docker.docker("pull", "demo:1")
        assert docker.docker("run", "--rm", "--network", "none", "demo:1") == "hello"
    finally:
        docker.stop()
    assert site.redirected() >= 2
    assert site.served() < 3 * MIB


async def test_docker_gets_what_was_removed_or_damaged_behind_the_mirror(site: Site) -> None:
    need("dockerd", "docker", "containerd", "runc", "busybox", root=True)
    push_image(site.hub.url, "library/gone", "1", "still here", [5 * MIB, 6 * MIB])
    await site.fill("library/gone", 6)
    manifest = json.loads(crane("manifest", f"127.0.0.1:{site.mirrors[0].port}/library/gone:1"))
    removed, damaged = manifest["layers"][2:]
    for layer in (removed, damaged):  # so that the mirror believes that they are there
        assert site.asked_from("127.0.0.2", f"/v2/library/gone/blobs/{layer['digest']}") == 307
    bucket = opened_bucket(site.cluster, NoEvents())
    await bucket.delete(path_of(ObjectKey(BLOBS, Digest.parse(removed["digest"]))))
    wrong = bytes(damaged["size"])
    await bucket.write(path_of(ObjectKey(BLOBS, Digest.parse(damaged["digest"]))), wrong)
    await bucket.close()
    docker = Dockerd(site.directory / "docker", site.mirror.url)
    docker.start()
    try:
        # The check of Docker may fail, and then that of the mirror, which removes the object.
        results = [docker.try_docker("pull", "gone:1")[0] for _ in range(3)]
        assert results[-1] == 0
        assert docker.docker("run", "--rm", "--network", "none", "gone:1") == "still here"
    finally:
        docker.stop()


async def test_crane_and_containerd_follow_redirects(site: Site) -> None:
    need("containerd", root=True)
    layers = [random_bytes(3 * MIB, seed) for seed in (1, 2)]
    content = image(*layers)
    push(site.hub.url, "library/app", content, "1")
    await site.fill("library/app", 4)
    redirected, served = site.redirected(), site.served()
    name = f"127.0.0.1:{site.mirror.port}/library/app"
    data = subprocess.run(
        [go_program("crane"), "blob", f"{name}@{digest_of(layers[0])}"],
        capture_output=True,
        timeout=LIMIT_SECONDS,
        check=True,
    ).stdout
    assert data == layers[0]
    containerd = Containerd(site.directory / "containerd")
    containerd.start()
    try:
        done = containerd.ctr(
            "content", "fetch", "--plain-http", f"{name}:1", environment=os.environ
        )
        assert done.returncode == 0, done.stderr
        for layer in layers:
            assert digest_of(layer) in containerd.ctr("content", "ls").stdout
    finally:
        containerd.stop()
    # containerd asks for the first layer within the time in which that client gets the bytes.
    assert site.redirected() - redirected == 2
    assert site.served() - served < 3 * MIB + 10_000
