"""The image of the Dockerfile, built and run as the docs say: not root, on a read-only root."""

import contextlib
import json
import os
import resource
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.test_helm import rendered
from tests.deploy.test_install import copy_twice
from tests.peers.base_image import import_base
from tests.peers.distribution import Distribution
from tests.peers.dockerd import Dockerd
from tests.peers.image import push_image
from tests.peers.process import accepts, free_port
from tests.peers.requirements import need
from tests.waiting import LIMIT_SECONDS

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800), pytest.mark.long]

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
            seconds=1500,  # pip has nothing cached
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
    labels = json.loads(site.docker.docker("inspect", "--format", "{{json .Config.Labels}}", IMAGE))
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert labels["org.opencontainers.image.source"].startswith("https://")
    who = "import os; print(os.getuid(), os.getgid(), os.access('/usr', os.W_OK))"
    assert site.docker.docker("exec", NAME, "python", "-c", who).split()[::2] == ["10001", "False"]
    assert site.docker.docker("diff", NAME) == ""

    # A reload, as anywhere.
    site.docker.docker("kill", "--signal", "HUP", NAME)
    site.wait_until(lambda: "reloaded: 0 changed" in site.log())

    # Its end, and another one with the same cache and without any registry.
    site.docker.docker("rmi", "demo:1")
    site.docker.docker("stop", "--time", "120", NAME)
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


@contextlib.contextmanager
def played(site: Site, manifests: str, directory: Path) -> Iterator[list[str]]:
    """Run the pods of manifests in Podman, which stands for a node; yield its command."""
    need("podman", "catatonit", root=True)
    settings = directory / "containers.conf"
    # Podman's own defaults may exceed the limits that root has in a container.
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    settings.write_text(
        f'[containers]\ndefault_ulimits = ["nofile={files}:{files}", "nproc=4096:4096"]\n'
    )
    podman = ["env", f"CONTAINERS_CONF={settings}", "podman", "--root", str(directory / "storage")]
    short = tempfile.mkdtemp()  # at most 50 characters
    podman += ["--runroot", short, "--storage-driver", "overlay"]
    archive = directory / "image.tar"
    site.docker.docker("save", "--output", str(archive), IMAGE)
    subprocess.run([*podman, "load", "--quiet", "--input", archive], check=True)
    try:
        command = [*podman, "kube", "play", "--network", "host", "-"]
        subprocess.run(command, input=manifests, text=True, check=True, timeout=LIMIT_SECONDS)
        yield podman
    finally:
        subprocess.run([*podman, "pod", "rm", "--all", "--force", "--time", "1"], check=True)
        subprocess.run([*podman, "system", "reset", "--force"], check=True)
        shutil.rmtree(short, ignore_errors=True)


def test_the_pod_of_the_chart_serves_a_pull(site: Site, tmp_path: Path) -> None:
    need("skopeo")
    push_image(site.hub.url, "library/demo", "1", "hello", [1_000_000])
    port = free_port()
    env = {
        "MIRROR_SERVER__LISTEN": f"127.0.0.1:{port}",
        "MIRROR_UPSTREAMS__DOCKER_IO__URL": site.hub.url,
        "MIRROR_CACHE__MIN_FREE": "0",
    }
    values = {
        "image": {"repository": f"localhost/{IMAGE}", "tag": "latest"},
        "env": [{"name": name, "value": value} for name, value in env.items()],
    }
    # The pod shares this machine's network, where no port can be mapped.
    port_of_pod = "          ports:\n            - {name: http, containerPort: 5000}\n"
    manifests = rendered(values)
    assert port_of_pod in manifests
    with played(site, manifests.replace(port_of_pod, ""), tmp_path) as podman:
        deadline = time.monotonic() + LIMIT_SECONDS
        while not accepts(port):
            logs = [*podman, "logs", "mirror-pod-0-mirror"]
            assert time.monotonic() < deadline, subprocess.getoutput(" ".join(logs))
            time.sleep(0.1)
        copy_twice(port, site.hub, tmp_path)
