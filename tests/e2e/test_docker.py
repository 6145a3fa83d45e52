"""A real Docker daemon pulls through the mirror from real registries."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mirror.cli.root import app
from tests.peers.distribution import Distribution
from tests.peers.dockerd import Dockerd
from tests.peers.image import push_image
from tests.peers.mirror import MirrorProcess
from tests.peers.requirements import need
from tests.waiting import until

pytestmark = [pytest.mark.e2e, pytest.mark.long]

MIB = 1 << 20


@dataclass
class Office:
    """Two registries, a mirror between, a Docker daemon that knows only the mirror."""

    hub: Distribution
    mcr: Distribution
    mirror: MirrorProcess
    docker: Dockerd

    def upstream_blob_requests(self) -> int:
        return self.hub.blob_requests() + self.mcr.blob_requests()


@pytest.fixture(scope="module")
def office(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Office]:
    need("dockerd", "docker", "docker-registry", "containerd", "runc", "busybox", root=True)
    directory: Path = tmp_path_factory.mktemp("office")
    hub, mcr = Distribution(directory / "hub"), Distribution(directory / "mcr")
    upstreams = {"docker.io": hub.url, "mcr.microsoft.com": mcr.url}
    # One connection per blob, so that upstream's log counts blobs; several have tests of their own.
    extra = '[tags]\nmax_age = "1s"\n[fill]\nconnections = 1\n'
    mirror = MirrorProcess(directory / "mirror", upstreams, extra)
    docker = Dockerd(directory / "docker", mirror.url)
    hub.start()
    mcr.start()
    mirror.start()
    docker.start()
    yield Office(hub, mcr, mirror, docker)
    docker.stop()
    mirror.terminate()
    hub.stop()
    mcr.stop()


def pull_and_run(office: Office, image: str, marker: str) -> None:
    """Pull an image that is not there, run it, remove it."""
    office.docker.docker("pull", image)
    said = office.docker.docker("run", "--rm", "--network", "none", image)
    assert said == marker
    office.docker.docker("rmi", image)


@pytest.mark.parametrize("way", ["registry-mirrors", "path prefix"])
def test_an_image_is_pulled_cold_warm_offline_and_after_a_restart(office: Office, way: str) -> None:
    if way == "registry-mirrors":
        upstream, repository, image = office.hub, "library/demo", "demo:1"
    else:
        upstream, repository = office.mcr, "dotnet/demo"
        image = f"127.0.0.1:{office.mirror.port}/mcr.microsoft.com/dotnet/demo:1"
    push_image(upstream.url, repository, "1", f"hello by {way}", [256 * MIB, 3 * MIB, 1000])

    before = upstream.blob_requests()
    pull_and_run(office, image, f"hello by {way}")
    cold = upstream.blob_requests()
    assert cold - before == 6, "config and five layers, each once"

    pull_and_run(office, image, f"hello by {way}")
    upstream.stop()
    pull_and_run(office, image, f"hello by {way}")
    assert office.mirror.terminate() == 0
    office.mirror.start()
    pull_and_run(office, image, f"hello by {way}")
    assert upstream.blob_requests() == cold
    registry = "docker.io" if upstream is office.hub else "mcr.microsoft.com"
    assert office.mirror.pulls(registry, repository) == {("1", "Docker"): 4}
    upstream.start()


def test_a_mirror_that_was_killed_serves_what_it_had(office: Office) -> None:
    push_image(office.hub.url, "library/killed", "1", "still here", [5 * MIB])
    pull_and_run(office, "killed:1", "still here")
    asked = office.hub.blob_requests()
    office.mirror.kill()
    office.hub.stop()
    office.mirror.start()
    pull_and_run(office, "killed:1", "still here")
    office.hub.start()
    assert office.hub.blob_requests() == asked


async def test_a_daemon_that_runs_needs_no_restart_to_use_the_mirror(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    need("dockerd", "docker", "containerd", "runc", root=True)
    tmp_path = tmp_path_factory.mktemp("root")  # containerd's sockets have short names only
    file = tmp_path / "etc/docker/daemon.json"
    file.parent.mkdir(parents=True)
    file.write_text('{"debug": true}')
    docker = Dockerd(tmp_path / "docker", config=file)
    docker.start()
    try:
        command = ["client", "docker", "--url", "http://m.lan:5000", "--write", str(tmp_path)]
        assert CliRunner().invoke(app, [*command, "--yes"]).exit_code == 0
        docker.reload()
        registries = ("info", "--format", "{{json .RegistryConfig}}")
        await until(lambda: "http://m.lan:5000/" in docker.docker(*registries))
        assert '"m.lan:5000":{' in docker.docker(*registries), "over plain http, for pulls by path"
    finally:
        docker.stop()
