"""A real Docker daemon whose proxy the mirror is: pulls and pushes by a registry's own name.

The registries speak TLS on the loopback, and only the mirror knows where: what Docker gets by the
name ``second.test`` can have come through it alone.
"""

import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import bcrypt
import pytest
import trustme
from typer.testing import CliRunner

from mirror.cli.root import app
from tests.peers.containerd import Containerd
from tests.peers.distribution import Distribution
from tests.peers.dockerd import Dockerd
from tests.peers.image import push_image
from tests.peers.mirror import MirrorProcess
from tests.peers.process import free_port
from tests.peers.requirements import need
from tests.waiting import LIMIT_SECONDS

pytestmark = [pytest.mark.e2e, pytest.mark.long]

MIB = 1 << 20
NAME = "second.test"
PRIVATE = "private.test"
PLAIN = "plain.test"


@dataclass
class Office:
    """A registry that speaks TLS, the mirror as a proxy, a Docker daemon that knows only it."""

    registry: Distribution
    twin: Distribution  # without TLS, on the same content
    private: Distribution
    mirror: MirrorProcess
    docker: Dockerd

    def pull_and_run(self, image: str, marker: str) -> None:
        """Pull an image that is not there, run it, remove it."""
        self.docker.docker("pull", image)
        assert self.docker.docker("run", "--rm", "--network", "none", image) == marker
        self.docker.docker("rmi", image)


def printed(config: Path, *arguments: str) -> str:
    """What a command of the mirror prints."""
    told = CliRunner().invoke(app, [*arguments, "--config", str(config)])
    assert told.exit_code == 0, told.stderr
    return told.stdout


@pytest.fixture(scope="module")
def office(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Office]:
    need("dockerd", "docker", "docker-registry", "containerd", "runc", "busybox", root=True)
    directory: Path = tmp_path_factory.mktemp("office")
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    issued.private_key_and_cert_chain_pem.write_to_path(str(directory / "registry.pem"))
    authority.cert_pem.write_to_path(str(directory / "registry-ca.pem"))
    data = directory / "registry"
    registry = Distribution(data, certificate=directory / "registry.pem")
    users = directory / "users"
    users.write_bytes(b"alice:" + bcrypt.hashpw(b"secret", bcrypt.gensalt(4)) + b"\n")
    private = Distribution(
        directory / "private", certificate=directory / "registry.pem", users=users
    )
    twin = Distribution(directory / "twin")
    (directory / "twin").mkdir()
    data.mkdir()
    (data / "data").mkdir()
    (directory / "twin" / "data").symlink_to(data / "data")
    port = free_port()
    extra = "\n".join(
        [
            f'[upstreams."{NAME}"]',
            f'url = "{registry.url}"',
            f'ca_file = "{directory}/registry-ca.pem"',
            f'[upstreams."{PRIVATE}"]',
            f'url = "{private.url}"',
            f'ca_file = "{directory}/registry-ca.pem"',
            f'[upstreams."{PLAIN}"]',
            f'url = "{twin.url}"',
            '[tags]\nmax_age = "1h"',
            "[fill]\nconnections = 1",
            f'[proxy]\nlisten = "127.0.0.1:{port}"\n',
        ]
    )
    mirror = MirrorProcess(directory / "mirror", {"docker.io": "http://127.0.0.1:9"}, extra)
    registry.start()
    twin.start()
    private.start()
    mirror.start()
    docker = Dockerd(directory / "docker", environment=environment(directory))
    docker.start()
    yield Office(registry, twin, private, mirror, docker)
    docker.stop()
    mirror.terminate()
    for each in (registry, twin, private):
        each.stop()


def environment(directory: Path) -> dict[str, str]:
    """As ``mirror ca`` and ``mirror client docker --proxy systemd`` say, for this daemon alone."""
    config = directory / "mirror" / "mirror.toml"
    (directory / "ca.pem").write_text(printed(config, "ca"))
    unit = printed(config, "client", "docker", "--proxy", "systemd")
    told = dict(re.findall(r'^Environment="(\w+)=(.*)"$', unit, re.MULTILINE))
    assert set(told) == {"HTTPS_PROXY", "NO_PROXY"}
    return {**told, "SSL_CERT_FILE": str(directory / "ca.pem")}


def test_an_image_of_another_registry_is_pulled_by_its_own_name(office: Office) -> None:
    push_image(office.twin.url, "team/demo", "1", "hello by proxy", [64 * MIB, 3 * MIB, 1000])
    image = f"{NAME}/team/demo:1"
    office.pull_and_run(image, "hello by proxy")
    cold = office.registry.blob_requests()
    assert cold == 6, "config and five layers, each once"
    office.pull_and_run(image, "hello by proxy")
    office.registry.stop()
    office.pull_and_run(image, "hello by proxy")
    assert office.mirror.terminate() == 0
    office.mirror.start()
    office.pull_and_run(image, "hello by proxy")
    office.registry.start()
    assert office.registry.blob_requests() == cold, "upstream was asked for no blob again"
    figures = office.mirror.metrics()
    hits = f'mirror_requests_total{{kind="blob",result="hit",upstream="{NAME}"}}'
    assert figures[hits] == 6


def test_a_push_goes_through_and_is_seen_at_once(office: Office) -> None:
    """Layers that the cache has from elsewhere are uploaded all the same; tags that move, move."""
    push_image(office.twin.url, "team/base", "1", "first", [2 * MIB])
    push_image(office.twin.url, "team/base", "2", "second", [2 * MIB])
    image = f"{NAME}/team/pushed:1"
    for tag, marker in (("1", "first"), ("2", "second")):
        office.docker.docker("pull", f"{NAME}/team/base:{tag}")
        office.docker.docker("tag", f"{NAME}/team/base:{tag}", image)
        office.docker.docker("push", image)
        office.docker.docker("rmi", image, f"{NAME}/team/base:{tag}")
        office.pull_and_run(image, marker)
    written = office.registry.writes()
    assert ("PUT", "/v2/team/pushed/manifests/1") in written
    assert sum(path.startswith("/v2/team/pushed/blobs/uploads/") for _, path in written) >= 4


def test_a_push_goes_through_to_a_registry_without_tls(office: Office, tmp_path: Path) -> None:
    """It names http addresses for its uploads; Docker and skopeo speak https to the mirror."""
    need("skopeo")
    push_image(office.twin.url, "team/plain", "1", "without tls", [2 * MIB])
    image, docker = f"{PLAIN}/team/by-docker:1", office.docker
    docker.docker("pull", f"{PLAIN}/team/plain:1")
    docker.docker("tag", f"{PLAIN}/team/plain:1", image)
    docker.docker("push", image)
    docker.docker("rmi", image, f"{PLAIN}/team/plain:1")
    office.pull_and_run(image, "without tls")
    copied(office, f"docker://{image}", f"dir:{tmp_path}/image")
    copied(office, f"dir:{tmp_path}/image", f"docker://{PLAIN}/team/by-skopeo:1")
    written = office.twin.writes()
    for client in ("docker", "skopeo"):
        assert ("PUT", f"/v2/team/by-{client}/manifests/1") in written


def copied(office: Office, source: str, target: str) -> None:
    """Copy an image with skopeo, whose proxy is the mirror."""
    command = ["skopeo", "--insecure-policy", "copy", "--all", source, target]
    environment = {**os.environ, **office.docker.environment}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_login_is_the_registrys_and_what_is_private_is_cached_for_whom_it_lets_in(
    office: Office,
) -> None:
    push_image(office.twin.url, "team/seed", "1", "for alice alone", [2 * MIB])
    image, docker = f"{PRIVATE}/team/app:1", office.docker
    docker.docker("pull", f"{NAME}/team/seed:1")
    docker.docker("tag", f"{NAME}/team/seed:1", image)
    assert "no basic auth credentials" in docker.refused("push", image)
    assert "unauthorized" in docker.refused("login", "-u", "alice", "-p", "wrong", PRIVATE).lower()
    docker.docker("login", "-u", "alice", "-p", "secret", PRIVATE)
    docker.docker("push", image)
    docker.docker("rmi", image, f"{NAME}/team/seed:1")
    office.pull_and_run(image, "for alice alone")
    fetched = len(office.private.fetched())
    assert 0 < fetched <= 4, "config and three layers, but for what the cache had from the other"
    office.pull_and_run(image, "for alice alone")
    assert len(office.private.fetched()) == fetched
    docker.docker("logout", PRIVATE)
    assert docker.refused("pull", image)
    log = office.mirror.output()
    assert "secret" not in log
    assert "YWxpY2U6" not in log, "the same, as Basic"


def test_skopeo_copies_an_image_in_and_out(office: Office, tmp_path: Path) -> None:
    need("skopeo")
    push_image(office.twin.url, "team/skopeo", "1", "copied", [2 * MIB])
    copied(office, f"docker://{NAME}/team/skopeo:1", f"dir:{tmp_path}/first")
    asked = len(office.registry.fetched())
    copied(office, f"docker://{NAME}/team/skopeo:1", f"dir:{tmp_path}/second")
    assert len(office.registry.fetched()) == asked
    copied(office, f"dir:{tmp_path}/first", f"docker://{NAME}/team/copied:1")
    copied(office, f"docker://{NAME}/team/copied:1", f"dir:{tmp_path}/third")
    names = [{file.name for file in (tmp_path / each).iterdir()} for each in ("first", "third")]
    assert names[0] == names[1]


def test_containerd_pulls_and_pushes_by_tag_and_digest(office: Office, tmp_path: Path) -> None:
    """It asks by HEAD, and pushes what is not there under the new name, wherever else it is."""
    need("containerd", "ctr", root=True)
    push_image(office.twin.url, "team/ctr", "1", "by ctr", [2 * MIB])
    environment = {**os.environ, **office.docker.environment}
    daemon = Containerd(tmp_path / "containerd")
    daemon.start()

    def ctr(*arguments: str) -> str:
        done = daemon.ctr("images", *arguments, environment=environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    try:
        image = f"{NAME}/team/ctr:1"
        ctr("pull", image)
        asked = len(office.registry.fetched())
        digest = re.search(r"sha256:[0-9a-f]{64}", ctr("ls"))
        assert digest is not None
        by_digest = f"{NAME}/team/ctr@{digest[0]}"
        for name in (image, by_digest):
            ctr("rm", "--sync", image)
            ctr("pull", name)
        office.registry.stop()
        ctr("rm", "--sync", image, by_digest)
        ctr("pull", by_digest)
        office.registry.start()
        assert len(office.registry.fetched()) == asked
        pushed = f"{NAME}/team/ctr-pushed:1"
        ctr("push", pushed, by_digest)
        ctr("rm", "--sync", by_digest)
        ctr("pull", pushed)
    finally:
        daemon.stop()


def test_a_registry_that_is_nobodys_upstream_is_let_through_or_told_of(office: Office) -> None:
    said = office.docker.refused("pull", "other.invalid/team/demo:1")
    assert "Bad Gateway" in said or "does not resolve" in said
