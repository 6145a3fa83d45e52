"""Policies with the programs of the people who meet them: cosign, Docker and containerd."""

import asyncio
import contextlib
import os
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)

from tests.fakes.content import image
from tests.peers.containerd import Containerd
from tests.peers.distribution import Distribution
from tests.peers.dockerd import Dockerd
from tests.peers.go_programs import go_program
from tests.peers.image import push, push_image
from tests.peers.mirror import MirrorProcess
from tests.peers.requirements import need
from tests.running import running
from tests.waiting import LIMIT_SECONDS

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800), pytest.mark.long]

HUB = "docker.io"
REPO = "library/app"


def cosign(directory: Path, *arguments: str) -> None:
    done = subprocess.run(
        [go_program("cosign"), *arguments],
        env=os.environ | {"COSIGN_PASSWORD": "", "HOME": str(directory)},
        cwd=directory, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.fixture
def registry(tmp_path):
    need("docker-registry")
    registry = Distribution(tmp_path / "registry")
    registry.start()
    yield registry
    registry.stop()


@pytest.mark.parametrize("layout", ["old", "new"])
@pytest.mark.parametrize("kind", ["ecdsa", "ed25519"])
async def test_what_cosign_has_signed_passes_and_nothing_else(tmp_path, registry, kind, layout):
    key = ec.generate_private_key(ec.SECP256R1())
    private = key if kind == "ecdsa" else ed25519.Ed25519PrivateKey.generate()
    pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (tmp_path / "private.pem").write_bytes(pem)
    images = {name: image(name.encode(), marker=name) for name in ("signed", "unsigned", "moved")}
    for name, content in images.items():
        await asyncio.to_thread(push, registry.url, REPO, content, name)
    await asyncio.to_thread(push, registry.url, "library/other", images["moved"], "1")

    def sign() -> None:
        cosign(tmp_path, "import-key-pair", "--key", "private.pem", "--output-key-prefix", "team")
        options = ["--key", "team.key", "--yes", "--use-signing-config=false"]
        options += ["--tlog-upload=false", "--allow-http-registry"]
        options += [f"--new-bundle-format={str(layout == 'new').lower()}"]
        place = registry.url.removeprefix("http://")
        cosign(tmp_path, "sign", *options, f"{place}/{REPO}@{images['signed'].digest}")
        cosign(tmp_path, "sign", *options, f"{place}/library/other@{images['moved'].digest}")

    await asyncio.to_thread(sign)
    rule = {"images": ["app:*"], "signed_by": [str(tmp_path / "team.pub")]}
    async with running(tmp_path / "cache", {HUB: registry.url}, policy=[rule]) as mirror:
        found = {name: (await mirror.get(f"/v2/{REPO}/manifests/{name}")).status for name in images}
        assert found == {"signed": 200, "unsigned": 403, "moved": 403}
        mark = images["signed"].digest.replace(":", "-") + (".sig" if layout == "old" else "")
        assert (await mirror.get(f"/v2/{REPO}/manifests/{mark}")).status == 200


def test_docker_and_containerd_say_who_refuses_and_why(tmp_path_factory, registry):
    need("dockerd", "docker", "containerd", "ctr", "runc", root=True)
    tmp_path = tmp_path_factory.mktemp("p")  # dockerd has sockets below it: the path is short
    push_image(registry.url, REPO, "1", "hello", [1000])
    reason = 'reason = "CVE-2026-12345"\n'
    extra = f'[[block]]\nimage = "{HUB}/{REPO}:*"\n{reason}'
    mirror = MirrorProcess(tmp_path / "mirror", {HUB: registry.url}, extra)
    docker, containerd = Dockerd(tmp_path / "docker"), Containerd(tmp_path / "containerd")
    name = f"127.0.0.1:{mirror.port}/{HUB}/{REPO}:1"
    with contextlib.ExitStack() as stack:
        for each, end in ((mirror, mirror.terminate), (docker, docker.stop)):
            each.start()
            stack.callback(end)
        containerd.start()
        stack.callback(containerd.stop)
        said = docker.refused("pull", name)
        assert said.endswith(
            "denied: docker.io/library/app:1 (docker.io/library/app:*) is blocked by the operator "
            "of this mirror: CVE-2026-12345; pull another version, or ask the operator to remove "
            "it from [[block]]\n"
        )
        done = containerd.ctr("images", "pull", "--plain-http", name)
        # It sends HEAD first, whose answer has no room for a reason.
        assert done.stderr.endswith("failed with status code [manifests 1]: 403 Forbidden\n")
