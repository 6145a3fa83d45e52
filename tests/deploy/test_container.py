"""The image of the Dockerfile, built and run as the docs say: not root, on a read-only root."""

import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.peers.base_image import import_base
from tests.peers.distribution import Distribution
from tests.peers.dockerd import Dockerd
from tests.peers.image import push_image
from tests.peers.process import free_port
from tests.peers.requirements import need
from tests.waiting import LIMIT_SECONDS

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(420), pytest.mark.long]

ROOT = Path(__file__).parents[2]
#: How this machine's pip finds packages; the names are the Dockerfile's.
PIP = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_TRUSTED_HOST", "PIP_CERT")
IMAGE, NAME = "container-mirror", "mirror"


@dataclass
class Site:
    """A registry, and a Docker daemon whose registry mirror is a container of its own."""

    hub: Distribution
    docker: Dockerd
    port: int

    def run(self) -> None:
        """Start the container, and wait until Docker calls it healthy."""
        self.docker.docker(
            *("run", "--detach", "--name", NAME, "--network", "host"),
            *("--read-only", "--tmpfs", "/tmp", "--user", "10001", "--cap-drop", "ALL"),
            *("--security-opt", "no-new-privileges", "--health-interval", "1s"),
            *("--volume", "cache:/var/cache/mirror"),
            *("--env", f"MIRROR_SERVER__LISTEN=127.0.0.1:{self.port}"),
            *("--env", f"MIRROR_UPSTREAMS__DOCKER_IO__URL={self.hub.url}"),
            *("--env", "MIRROR_CACHE__MIN_FREE=0"),
            IMAGE,
        )
        self.wait_until(lambda: self.state()["Health"]["Status"] == "healthy")

    def state(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(
            self.docker.docker("inspect", "--format", "{{json .State}}", NAME)
        )
        return found

    def log(self) -> str:
        return self.docker.try_docker("logs", NAME)[1]

    def wait_until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + LIMIT_SECONDS
        while not condition():
            assert self.state()["Running"], self.log()
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.05)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    need("dockerd", "docker", "docker-registry", "containerd", "runc", "busybox", root=True)
    need("install", "ldd")
    directory: Path = tmp_path_factory.mktemp("site")
    port = free_port()
    hub, docker = (
        Distribution(directory / "hub"),
        Dockerd(directory / "docker", f"http://127.0.0.1:{port}"),
    )
    hub.start()
    docker.start()
    try:
        import_base(docker.command(), "base")
        settings = [f"--build-arg={name}={os.environ[name]}" for name in PIP if name in os.environ]
        docker.docker(
            *("build", "--network", "host", "--tag", IMAGE, "--build-arg", "BASE=base"),
            *(*settings, str(ROOT)),
            seconds=300,
        )
        yield Site(hub, docker, port)
    finally:
        docker.try_docker("rm", "--force", NAME)
        docker.stop()
        hub.stop()


def test_the_container_serves_a_pull_and_keeps_it_over_its_own_end(site: Site) -> None:
    site.run()
    push_image(site.hub.url, "library/demo", "1", "hello", [3_000_000])
    site.docker.docker("pull", "demo:1")
    assert site.docker.docker("run", "--rm", "--network", "none", "demo:1") == "hello"
    assert site.hub.blob_requests() > 0

    # What it is, and what it has written.
    who = "import os; print(os.getuid(), os.getgid(), os.access('/usr', os.W_OK))"
    assert site.docker.docker("exec", NAME, "python", "-c", who).split()[::2] == ["10001", "False"]
    assert site.docker.docker("diff", NAME) == ""

    # A reload, as anywhere.
    site.docker.docker("kill", "--signal", "HUP", NAME)
    site.wait_until(lambda: "reloaded: 0 changed" in site.log())

    # Its end, and another one with the same cache and without any registry.
    site.docker.docker("rmi", "demo:1")
    site.docker.docker("stop", "--time", "30", NAME)
    assert site.state()["ExitCode"] == 0, site.log()
    site.docker.docker("rm", NAME)
    site.hub.stop()
    site.run()
    site.docker.docker("pull", "demo:1")
    assert site.docker.docker("run", "--rm", "--network", "none", "demo:1") == "hello"
    site.hub.start()


def test_a_mistake_in_its_configuration_is_told_and_ends_it(site: Site) -> None:
    code, output = site.docker.try_docker(
        *("run", "--rm", "--network", "host", "--read-only"),
        *("--env", "MIRROR_CACHE__MAX_SIZE=lots", IMAGE),
    )
    assert code == 2
    assert output.startswith("mirror: environment: cache.max_size: found 'lots', allowed: ")
