"""Clients written in Go copy an index, all its platforms and what is attached to them.

Debian's docker-registry has no referrers API: clients find what is attached by the tag
``sha256-<hex>`` of its subject.
"""

import json
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

from mirror.cli.root import app
from tests.fakes.content import OCI_INDEX, Image, digest_of, image, index, random_bytes
from tests.peers.distribution import Distribution
from tests.peers.go_programs import go_program
from tests.peers.image import push
from tests.peers.mirror import MirrorProcess
from tests.peers.process import free_port
from tests.peers.requirements import need
from tests.waiting import LIMIT_SECONDS

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.timeout(1800),
    pytest.mark.long,
]  # a first build takes minutes

MIB = 1 << 20
REPOSITORY = "team/app"
SBOM = b'{"spdxVersion": "SPDX-2.3"}'
SBOM_TYPE = "application/spdx+json"
PLATFORMS = {
    architecture: image(random_bytes(2 * MIB, seed), random_bytes(1000, seed), marker=architecture)
    for seed, architecture in enumerate(["amd64", "arm64"])
}
EMPTY = digest_of(b"{}")  # the config of an artifact; its manifest has the bytes too
BLOBS = {digest for each in PLATFORMS.values() for digest in each.digests} | {digest_of(SBOM)}


def _index() -> Image:
    body = json.loads(index(*PLATFORMS.values()))
    for entry, architecture in zip(body["manifests"], PLATFORMS, strict=True):
        entry["platform"] = {"os": "linux", "architecture": architecture}
    return Image(json.dumps(body).encode(), OCI_INDEX, ())


INDEX = _index()


@dataclass
class Office:
    """A registry as Docker Hub, and a mirror of it that is an HTTPS proxy too."""

    directory: Path
    registry: Distribution
    mirror: MirrorProcess
    proxy: str

    def run(self, program: str, *arguments: str | Path) -> str:
        """Run a client that has no configuration of its own; its standard output."""
        done = subprocess.run(
            [go_program(program), *arguments],
            env={
                "HOME": str(self.directory),
                "HTTPS_PROXY": self.proxy,  # for names of registries; loopback is never proxied
                "SSL_CERT_FILE": f"{self.directory}/ca.pem",
                "COSIGN_PASSWORD": "",
            },
            capture_output=True,
            text=True,
            timeout=LIMIT_SECONDS,
            check=False,
        )
        assert done.returncode == 0, f"{program} {arguments}:\n{done.stdout}{done.stderr}"
        return done.stdout

    def in_all_phases(self, use: Callable[[str], None]) -> list[tuple[str, str]]:
        """Use a client cold, warm, with upstream gone, and after a restart; the blobs asked for.

        The registry must have all content by now.
        """
        pushed = len(self.registry.requests())
        use("cold")
        use("warm")
        self.registry.stop()
        use("offline")
        assert self.mirror.terminate() == 0
        self.mirror.start()
        use("restarted")
        blobs = [read for read in self.registry.requests()[pushed:] if "/blobs/" in read[1]]
        assert len(blobs) == len(set(blobs)), "upstream is asked for each blob once"
        print(f"upstream saw {len(blobs)} blob requests")
        return blobs

    def attach(self) -> str:
        """Attach an SBOM to the index, at the registry; the digest of its manifest."""
        (self.directory / "sbom").write_bytes(SBOM)
        target = f"localhost:{self.registry.port}/{REPOSITORY}@{INDEX.digest}"
        options = ["--disable-path-validation", "--artifact-type", SBOM_TYPE]
        sbom = f"{self.directory}/sbom:{SBOM_TYPE}"
        attached = self.run("oras", "attach", *options, "--format", "json", target, sbom)
        return str(json.loads(attached)["digest"])


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    need("docker-registry")
    go_program("oras")
    registry, port = Distribution(tmp_path / "registry"), free_port()
    extra = f'[tags]\nmax_age = "100ms"\n[proxy]\nlisten = "127.0.0.1:{port}"\n'
    mirror = MirrorProcess(tmp_path / "mirror", {"docker.io": registry.url}, extra)
    registry.start()
    mirror.start()
    config = str(tmp_path / "mirror/mirror.toml")
    authority = CliRunner().invoke(app, ["ca", "--config", config])
    (tmp_path / "ca.pem").write_text(authority.stdout)
    for architecture, each in PLATFORMS.items():
        push(registry.url, REPOSITORY, each, architecture)
    push(registry.url, REPOSITORY, INDEX, "1")
    yield Office(tmp_path, registry, mirror, f"http://127.0.0.1:{port}")
    mirror.terminate()
    registry.stop()


def crane(office: Office, repository: str, layout: Path) -> None:
    """crane knows no referrers; the index of what is attached is an image for it."""
    for tag in ("1", INDEX.digest.replace(":", "-")):
        office.run("crane", "pull", "--format", "oci", f"{repository}:{tag}", layout)


def regctl(office: Office, repository: str, layout: Path) -> None:
    options = ["--host", f"reg=localhost:{office.mirror.port},tls=disabled"]
    source, target = f"{repository}:1", f"ocidir://{layout}:1"
    office.run("regctl", *options, "image", "copy", "--referrers", source, target)


def oras(office: Office, repository: str, layout: Path) -> None:
    source = f"{repository}:1"
    office.run("oras", "copy", "--recursive", source, "--to-oci-layout", f"{layout}:1")
    (found,) = json.loads(office.run("oras", "discover", "--format", "json", source))["referrers"]
    assert found["artifactType"] == SBOM_TYPE
    assert (layout / "blobs" / found["digest"].replace(":", "/")).exists()


@pytest.mark.parametrize("by_proxy", [False, True], ids=["by_path", "by_proxy"])
@pytest.mark.parametrize("copy", [crane, regctl, oras])
def test_a_copy_is_whole_cold_warm_offline_and_after_a_restart(
    office: Office, copy: Callable[[Office, str, Path], None], by_proxy: bool, tmp_path: Path
) -> None:
    """crane asks index.docker.io for images of Docker Hub, the others registry-1.docker.io."""
    address = "" if by_proxy else f"localhost:{office.mirror.port}/"
    attached = office.attach()
    wanted = {INDEX.digest, attached, *(each.digest for each in PLATFORMS.values()), *BLOBS}

    def copied(phase: str) -> None:
        copy(office, f"{address}docker.io/{REPOSITORY}", tmp_path / phase)
        files = list((tmp_path / phase / "blobs/sha256").iterdir())
        assert all(digest_of(file.read_bytes()) == f"sha256:{file.name}" for file in files)
        assert wanted <= {f"sha256:{file.name}" for file in files}

    blobs = office.in_all_phases(copied)
    expected = {("GET", f"/v2/{REPOSITORY}/blobs/{digest}") for digest in BLOBS}
    assert {read for read in blobs if not read[1].endswith(EMPTY)} == expected


@pytest.mark.parametrize("by_proxy", [False, True], ids=["by_path", "by_proxy"])
def test_a_chart_is_pulled_cold_warm_offline_and_after_a_restart(
    office: Office, by_proxy: bool, tmp_path: Path
) -> None:
    chart = tmp_path / "app"
    chart.mkdir()
    (chart / "Chart.yaml").write_text("apiVersion: v2\nname: app\nversion: 1.0.0\n")
    office.run("helm", "package", chart, "--destination", tmp_path)
    packed, registry = tmp_path / "app-1.0.0.tgz", f"localhost:{office.registry.port}"
    office.run("helm", "push", packed, f"oci://{registry}/charts", "--plain-http")
    place = "" if by_proxy else f"localhost:{office.mirror.port}/"

    def pulled(phase: str) -> None:
        options = ["--version", "1.0.0", "--destination", str(tmp_path / phase)]
        options += [] if by_proxy else ["--plain-http"]
        (tmp_path / phase).mkdir()
        office.run("helm", "pull", f"oci://{place}docker.io/charts/app", *options)
        assert (tmp_path / phase / packed.name).read_bytes() == packed.read_bytes()

    assert len(office.in_all_phases(pulled)) == 2


@dataclass
class Notation:
    """A signature of a test certificate, which the client trusts."""

    office: Office

    def sign(self, image: str) -> None:
        self.office.run("notation", "cert", "generate-test", "--default", "office")
        policy = {
            "name": "all",
            "registryScopes": ["*"],
            "signatureVerification": {"level": "strict"},
            "trustStores": ["ca:office"],
            "trustedIdentities": ["*"],
        }
        file = self.office.directory / "policy.json"
        file.write_text(json.dumps({"version": "1.0", "trustPolicies": [policy]}))
        self.office.run("notation", "policy", "import", file)
        self.office.run("notation", "sign", image)

    def verify(self, image: str) -> None:
        assert "Successfully verified" in self.office.run("notation", "verify", image)


@dataclass
class Cosign:
    """A signature by a key, without a transparency log."""

    office: Office

    def sign(self, image: str) -> None:
        self.office.run("cosign", "generate-key-pair", "--output-key-prefix", self.key)
        options = ["--key", f"{self.key}.key", "--yes", "--use-signing-config=false"]
        self.office.run("cosign", "sign", *options, "--tlog-upload=false", image)

    def verify(self, image: str) -> None:
        options = ["--key", f"{self.key}.pub", "--insecure-ignore-tlog"]
        assert INDEX.digest in self.office.run("cosign", "verify", *options, image)

    @property
    def key(self) -> str:
        return f"{self.office.directory}/cosign"


@pytest.mark.parametrize("by_proxy", [False, True], ids=["by_path", "by_proxy"])
@pytest.mark.parametrize("signer", [Notation, Cosign])
def test_a_signature_is_verified_cold_warm_offline_and_after_a_restart(
    office: Office, signer: type[Notation | Cosign], by_proxy: bool
) -> None:
    client = signer(office)
    client.sign(f"localhost:{office.registry.port}/{REPOSITORY}@{INDEX.digest}")
    place = "" if by_proxy else f"localhost:{office.mirror.port}/"
    image = f"{place}docker.io/{REPOSITORY}@{INDEX.digest}"
    assert len(office.in_all_phases(lambda _: client.verify(image))) == 1
