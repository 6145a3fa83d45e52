"""Real clients, told of the mirror by what `mirror client` prints, pull through it."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import pytest
import trustme

from tests.peers.containerd import Containerd
from tests.peers.distribution import Distribution
from tests.peers.dockerd import Dockerd
from tests.peers.go_programs import go_program
from tests.peers.image import push_image
from tests.peers.mirror import MirrorProcess
from tests.peers.process import Process, accepts
from tests.peers.requirements import need
from tests.waiting import LIMIT_SECONDS

# A first build takes minutes.
pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800), pytest.mark.long]

MIB = 1 << 20
HUB, SECOND = "docker.io", "second.example.com"
INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
MIRROR = [sys.executable, "-m", "mirror"]
#: Registries themselves are nowhere for the clients: what comes can only be the mirror's.  (A proxy
#: on loopback would be the mirror's own, to the doctor.)
NOWHERE = {"HTTPS_PROXY": "http://nowhere.invalid:9", "NO_PROXY": "127.0.0.1"}


class TlsMirror(MirrorProcess):
    """A mirror that speaks https alone, with a certificate of ``authority``."""

    authority = trustme.CA()

    @property
    def url(self) -> str:
        return super().url.replace("http:", "https:")

    def start(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        certificate = self.authority.issue_cert("127.0.0.1")
        certificate.cert_chain_pems[0].write_to_path(self.directory / "certificate.pem")
        certificate.private_key_pem.write_to_path(self.directory / "key.pem")
        self.authority.cert_pem.write_to_path(self.directory / "ca.pem")
        super().start()

    def _ready(self) -> bool:
        return accepts(self.port)

    def _toml(self) -> str:
        keys = f'tls_certificate = "{self.directory}/certificate.pem"\n'
        keys += f'tls_key = "{self.directory}/key.pem"\n'
        return super()._toml().replace("[cache]", f"{keys}[cache]")


@dataclass
class Office:
    """Two registries and a mirror of both."""

    directory: Path
    hub: Distribution
    second: Distribution
    mirror: MirrorProcess

    def upstream(self, registry: str) -> Distribution:
        return {HUB: self.hub, SECOND: self.second}[registry]

    def write(self, directory: Path, *client: str) -> dict[str, Path]:
        """Have `mirror client` write its files below ``directory``; by their place there.

        What it prints is the same, byte for byte.
        """
        if isinstance(self.mirror, TlsMirror):
            client = (*client, "--ca-file", str(self.mirror.directory / "ca.pem"))
        printed = self.mirror_command("client", *client)
        written = self.mirror_command("client", *client, "--write", str(directory))
        paths = [Path(line) for line in written.splitlines()]
        texts = [path.read_text() for path in paths if path.name != "ca.crt"]
        assert printed == "\n".join(texts)
        return {f"/{path.relative_to(directory)}": path for path in paths}

    def mirror_command(self, *arguments: str) -> str:
        config = str(self.mirror.directory / "mirror.toml")
        return run(
            [*MIRROR, *arguments, "--config", config, "--url", self.mirror.url],
            dict(os.environ),
        )


def run(command: list[str], environment: dict[str, str] | None = None, code: int = 0) -> str:
    """Run a client; its standard output."""
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False
    )
    assert done.returncode == code, f"{' '.join(command)}:\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def office(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Office]:
    need("docker-registry", "busybox", root=True)
    directory = tmp_path_factory.mktemp("clients")
    hub, second = Distribution(directory / "hub"), Distribution(directory / "second")
    upstreams = {HUB: hub.url, SECOND: second.url}
    mirror = MirrorProcess(directory / "mirror", upstreams, '[tags]\nmax_age = "1s"\n')
    for peer in (hub, second, mirror):
        peer.start()
    yield Office(directory, hub, second, mirror)
    mirror.terminate()
    hub.stop()
    second.stop()


@dataclass
class Ctr:
    """containerd and its ctr, with `mirror client containerd`."""

    name: ClassVar = "containerd"
    options: ClassVar[tuple[str, ...]] = ()  # of `mirror client`
    snapshotter: ClassVar[tuple[str, ...]] = ("--snapshotter", "native")

    office: Office
    directory: Path

    def start(self) -> None:
        written = self.office.write(self.directory / "machine", "containerd", *self.options)
        assert f"/etc/containerd/certs.d/{SECOND}/hosts.toml" in written
        self._hosts = self.directory / "machine/etc/containerd/certs.d"
        self._daemon = self.daemon()
        self._daemon.start(NOWHERE)

    def daemon(self) -> Containerd:
        return Containerd(self.directory, self._hosts)

    def stop(self) -> None:
        self._daemon.stop()

    def get(self, image: str) -> None:
        self._ctr("images", "pull", "--hosts-dir", str(self._hosts), *self.snapshotter, image)

    def drop(self, image: str) -> None:
        self._ctr("images", "rm", "--sync", image)

    def _ctr(self, *arguments: str) -> None:
        done = self._daemon.ctr(*arguments, environment=os.environ | NOWHERE)
        assert done.returncode == 0, f"{' '.join(arguments)}:\n{done.stdout}{done.stderr}"


class Crictl(Ctr):
    """crictl, as the kubelet pulls: containerd itself reads ``hosts.toml``."""

    def get(self, image: str) -> None:
        self._crictl("pull", image)

    def drop(self, image: str) -> None:
        self._crictl("rmi", image)

    def _crictl(self, *arguments: str) -> None:
        run(
            [
                str(go_program("crictl")),
                "--image-endpoint",
                f"unix://{self._daemon.socket}",
                *arguments,
            ]
        )


class Ctr2(Ctr):
    """containerd 2, where ctr has the daemon pull, by its transfer service."""

    options = ("--referrers",)

    def daemon(self) -> Containerd:
        programs = str(go_program("containerd")), str(go_program("ctr"))
        return Containerd(self.directory, self._hosts, programs, version=3)


class Ctr2Local(Ctr2):
    """ctr pulls by itself, as that of containerd 1 does."""

    snapshotter = ("--local", *Ctr.snapshotter)


class Crictl2(Ctr2, Crictl):
    """crictl with containerd 2."""


@dataclass
class BuildKit:
    """buildkitd and its buildctl, with `mirror client buildkit`; a build pulls its base image."""

    name: ClassVar = "BuildKit"

    office: Office
    directory: Path

    def start(self) -> None:
        daemon, self._buildctl = go_program("buildkitd"), str(go_program("buildctl"))
        self.office.write(self.directory / "machine", "buildkit")
        command = [
            str(daemon),
            *("--config", f"{self.directory}/machine/etc/buildkit/buildkitd.toml"),
            *("--addr", f"unix://{self.directory}/sock"),
            *("--otel-socket-path", f"{self.directory}/otel"),
            *("--root", f"{self.directory}/root"),
            *("--containerd-worker=false", "--oci-worker-snapshotter=native"),
        ]
        self._process = Process(command, self.directory / "log", {**os.environ, **NOWHERE})
        self._process.wait_until(self._answers)

    def stop(self) -> None:
        self._process.terminate()

    def get(self, image: str) -> None:
        context, built = self.directory / "context", self.directory / "built"
        context.mkdir(exist_ok=True)
        (context / "Dockerfile").write_text(f"FROM {image}\nCOPY Dockerfile /\n")
        source = (f"--local=context={context}", f"--local=dockerfile={context}")
        output = f"--output=type=local,dest={built}"
        self._run("build", "--frontend=dockerfile.v0", "--no-cache", *source, output)
        assert (built / "marker").read_text() == image
        shutil.rmtree(built)

    def drop(self, image: str) -> None:
        self._run("prune", "--all")

    def _answers(self) -> bool:
        asked = self._command("debug", "workers")
        return subprocess.run(asked, capture_output=True, check=False).returncode == 0

    def _run(self, *arguments: str) -> None:
        run(self._command(*arguments))

    def _command(self, *arguments: str) -> list[str]:
        return [self._buildctl, f"--addr=unix://{self.directory}/sock", *arguments]


@dataclass
class Containers:
    """Podman's family, with `mirror client podman` as the drop-in of a user of its own."""

    office: Office
    directory: Path

    def start(self) -> None:
        machine = self.directory / "machine"
        self.office.write(machine, "podman")
        shutil.copytree(machine / "etc/containers", self.directory / "home/.config/containers")
        self._environment = os.environ | NOWHERE | {"HOME": str(self.directory / "home")}
        self._runroot = Path(tempfile.mkdtemp())  # Podman takes 50 characters at most

    def stop(self) -> None:
        shutil.rmtree(self._runroot)

    def run(self, program: str, *arguments: str) -> str:
        return run([program, *arguments], self._environment)

    @property
    def storage(self) -> list[str]:
        places = ["--root", f"{self.directory}/root", "--runroot", str(self._runroot)]
        return [*places, "--storage-driver", "vfs"]


class Podman(Containers):
    name = "Podman"

    def get(self, image: str) -> None:
        self.run("podman", *self.storage, "pull", "--quiet", image)

    def drop(self, image: str) -> None:
        self.run("podman", *self.storage, "rmi", image)


class Skopeo(Containers):
    name = "Skopeo"

    def get(self, image: str) -> None:
        self.run("skopeo", "copy", "--quiet", "--all", f"docker://{image}", f"dir:{self.copy}")

    def drop(self, image: str) -> None:
        shutil.rmtree(self.copy)

    @property
    def copy(self) -> Path:
        return self.directory / "copy"


class Buildah(Containers):
    name = "Buildah"

    def get(self, image: str) -> None:
        context = self.directory / "context"
        context.mkdir(exist_ok=True)
        (context / "Containerfile").write_text(
            f'FROM {image}\nRUN ["/bin/busybox", "cp", "/marker", "/seen"]\n'
        )
        arguments = ("bud", "--isolation", "chroot", "--network", "host", "-t", "built")
        self.run("buildah", *self.storage, *arguments, str(context))
        (seen,) = self.directory.glob("root/vfs/dir/*/seen")
        assert seen.read_text() == image

    def drop(self, image: str) -> None:
        self.run("buildah", *self.storage, "rmi", "--all", "--force")


CLIENTS: dict[str, tuple[type, tuple[str, ...]]] = {
    "containerd": (Ctr, ("containerd", "ctr", "runc")),
    "crictl": (Crictl, ("containerd", "runc")),
    "containerd-2": (Ctr2, ("runc",)),
    "containerd-2-local": (Ctr2Local, ("runc",)),
    "crictl-2": (Crictl2, ("runc",)),
    "buildkit": (BuildKit, ("runc",)),
    "podman": (Podman, ("podman",)),
    "skopeo": (Skopeo, ("skopeo",)),
    "buildah": (Buildah, ("buildah",)),
}


@pytest.fixture(scope="module", params=CLIENTS)
def client(request: pytest.FixtureRequest, office: Office) -> Iterator[Ctr | Containers]:
    made, programs = CLIENTS[request.param]
    need(*programs, root=True)
    client = made(office, office.directory / request.param)
    client.start()
    yield client
    client.stop()


@pytest.mark.parametrize("registry", [HUB, SECOND])
def test_an_image_is_pulled_by_its_usual_name_cold_warm_offline_and_after_a_restart(
    office: Office, client: Ctr | Podman, registry: str
) -> None:
    upstream, repository = office.upstream(registry), f"team/{type(client).__name__.lower()}"
    image = f"{registry}/{repository}:1"
    push_image(upstream.url, repository, "1", image, [2 * MIB, 1000])

    client.get(image)
    asked = blob_reads(upstream, repository)
    assert len(asked) == len(set(asked)), "each once"
    assert len(asked) >= 4, "config and layers, but for busybox that another image may have brought"
    cold = upstream.blob_requests()

    hits = blob_hits(office, registry)
    client.drop(image)
    client.get(image)
    client.drop(image)
    upstream.stop()
    client.get(image)
    client.drop(image)
    assert blob_hits(office, registry) - hits >= 2 * 5, "config and four layers, twice"
    assert office.mirror.terminate() == 0
    office.mirror.start()
    client.get(image)
    client.drop(image)
    upstream.start()
    assert upstream.blob_requests() == cold
    assert office.mirror.pulls(registry, repository) == {("1", client.name): 4}


@pytest.mark.parametrize("client", ["containerd", "containerd-2", "buildkit", "podman"])
def test_an_image_is_pulled_over_https_with_the_ca_that_was_given(
    office: Office, client: str, tmp_path: Path
) -> None:
    made, programs = CLIENTS[client]
    need(*programs, root=True)
    image = f"{SECOND}/tls/{client}:1"
    push_image(office.second.url, f"tls/{client}", "1", image, [1000])
    mirror = TlsMirror(tmp_path / "mirror", office.mirror.upstreams)
    puller = made(Office(tmp_path, office.hub, office.second, mirror), tmp_path / "client")
    with contextlib.ExitStack() as running:
        mirror.start()
        running.callback(mirror.terminate)
        puller.start()
        running.callback(puller.stop)
        puller.get(image)
        puller.drop(image)


@pytest.mark.parametrize("registry", [HUB, SECOND])
def test_skopeo_copies_an_index_with_all_its_platforms(
    request: pytest.FixtureRequest, office: Office, registry: str
) -> None:
    need("skopeo", root=True)
    upstream, repository = office.upstream(registry), "team/platforms"
    platforms = ["amd64", "arm64", "riscv64"]
    push_index(upstream.url, repository, platforms)
    skopeo = Skopeo(office, office.directory / f"index-{registry}")
    skopeo.start()
    request.addfinalizer(skopeo.stop)
    image = f"{registry}/{repository}:all"

    skopeo.get(image)
    asked = blob_reads(upstream, repository)
    assert len(asked) == len(set(asked)) >= 3 * len(platforms)
    cold = upstream.blob_requests()
    index = json.loads((skopeo.copy / "manifest.json").read_text())
    assert [entry["platform"]["architecture"] for entry in index["manifests"]] == platforms

    for offline in (False, True):
        first = {path.name: path.read_bytes() for path in skopeo.copy.iterdir()}
        skopeo.drop(image)
        if offline:
            upstream.stop()
        skopeo.get(image)
        assert {path.name: path.read_bytes() for path in skopeo.copy.iterdir()} == first
    upstream.start()
    assert upstream.blob_requests() == cold


def blob_hits(office: Office, registry: str) -> float:
    labels = f'kind="blob",result="hit",upstream="{registry}"'
    return office.mirror.metrics().get(f"mirror_requests_total{{{labels}}}", 0)


def blob_reads(upstream: Distribution, repository: str) -> list[tuple[str, str]]:
    prefix = f"/v2/{repository}/blobs/sha256:"
    return [request for request in upstream.requests() if request[1].startswith(prefix)]


def push_index(registry: str, repository: str, platforms: list[str]) -> None:
    """Upload an index over one image per platform, under the tag "all"."""
    entries = []
    for platform in platforms:
        push_image(registry, repository, platform, platform, [1000])
        url = f"{registry}/v2/{repository}/manifests/{platform}"
        asked = urllib.request.Request(url, headers={"Accept": MANIFEST})
        with urllib.request.urlopen(asked, timeout=LIMIT_SECONDS) as response:
            size, digest = len(response.read()), response.headers["Docker-Content-Digest"]
        entries.append(
            {
                "mediaType": MANIFEST,
                "digest": digest,
                "size": size,
                "platform": {"os": "linux", "architecture": platform},
            }
        )
    body = {"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}
    urllib.request.urlopen(
        urllib.request.Request(
            f"{registry}/v2/{repository}/manifests/all",
            json.dumps(body).encode(),
            {"Content-Type": INDEX},
            method="PUT",
        ),
        timeout=LIMIT_SECONDS,
    ).close()


@dataclass
class ConfiguredDockerd(Dockerd):
    """A daemon that knows the mirror from its daemon.json, on a machine for the doctor to see."""

    machine: Path = field(default_factory=Path)

    def start(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        self._socket = self.directory / "docker.sock"
        command = [
            "dockerd",
            *("--config-file", f"{self.machine}/etc/docker/daemon.json"),
            *("--host", f"unix://{self._socket}"),
            *("--data-root", f"{self.directory}/data"),
            *("--exec-root", f"{self.directory}/exec"),
            *("--pidfile", f"{self.directory}/pid"),
            *("--iptables=false", "--bridge=none"),
        ]
        environment = {"PATH": os.environ["PATH"] + ":/usr/sbin:/sbin", **NOWHERE}
        self._process = Process(command, self.directory / "log", environment)
        self._process.wait_until(self._answers)
        (self.machine / "run").mkdir(exist_ok=True)
        (self.machine / "run/docker.sock").symlink_to(self._socket)


@pytest.fixture(scope="module")
def docker(office: Office) -> Iterator[ConfiguredDockerd]:
    need("dockerd", "docker", "containerd", "runc", root=True)
    machine = office.directory / "docker-machine"
    office.write(machine, "docker")
    daemon = ConfiguredDockerd(office.directory / "docker", "", machine=machine)
    daemon.start()
    yield daemon
    daemon.stop()


@pytest.fixture
def doctor(office: Office, docker: ConfiguredDockerd) -> Callable[[int], str]:
    """Have the doctor look at Docker's machine; its exit code is as foreseen."""
    command = [*MIRROR, "doctor", "--root", str(docker.machine)]
    return lambda code: run([*command, "--url", office.mirror.url], dict(os.environ), code)


def test_docker_pulls_with_the_printed_daemon_json_and_the_doctor_sees_nothing_wrong(
    office: Office, docker: ConfiguredDockerd, doctor: Callable[[int], str]
) -> None:
    push_image(office.hub.url, "library/busybox", "latest", "hello", [MIB])
    docker.docker("pull", "busybox")
    asked = blob_reads(office.hub, "library/busybox")
    assert len(asked) == len(set(asked)) >= 3
    cold = office.hub.blob_requests()
    docker.docker("rmi", "busybox")
    docker.docker("pull", "busybox")
    assert office.hub.blob_requests() == cold
    docker.docker("rmi", "busybox")

    said = doctor(0)
    assert f"daemon.json: registry-mirrors names {office.mirror.url}" in said
    assert "nothing is wrong" in said


def test_the_doctor_sees_that_the_real_daemon_was_not_restarted(
    docker: ConfiguredDockerd, doctor: Callable[[int], str]
) -> None:
    """The daemon goes on with what it read; the doctor is told the same address anew."""
    file = docker.machine / "etc/docker/daemon.json"
    right = file.read_text()
    file.write_text('{"registry-mirrors": ["http://127.0.0.1:1"]}')
    assert "does not use the registry mirror http://127.0.0.1:1" in doctor(1)
    file.write_text("{")
    assert "is not valid JSON" in doctor(1)
    file.write_text(right)
    doctor(0)
