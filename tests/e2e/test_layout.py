"""Images carried by file from one mirror to another that reaches no registry, and real programs
that read and write such files.
"""

import json
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.peers.distribution import Distribution
from tests.peers.dockerd import Dockerd
from tests.peers.image import push_image
from tests.peers.mirror import MirrorProcess
from tests.peers.process import free_port
from tests.peers.requirements import need
from tests.waiting import LIMIT_SECONDS

pytestmark = [pytest.mark.e2e, pytest.mark.long]

MIB = 1 << 20


@dataclass
class Sites:
    """A mirror with a registry; far from it one without, and a Docker daemon that knows only it."""

    directory: Path
    hub: Distribution
    here: MirrorProcess
    there: MirrorProcess
    docker: Dockerd


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sites]:
    programs = ("dockerd", "docker", "docker-registry", "containerd", "runc", "busybox", "skopeo")
    need(*programs, root=True)
    directory: Path = tmp_path_factory.mktemp("sites")
    hub = Distribution(directory / "hub")
    here = MirrorProcess(directory / "here", {"docker.io": hub.url})
    nowhere = f"http://127.0.0.1:{free_port()}"
    there = MirrorProcess(directory / "there", {"docker.io": nowhere})
    docker = Dockerd(directory / "docker", there.url)
    hub.start()
    push_image(hub.url, "library/carried", "1", "carried by hand", [3 * MIB, 1000])
    here.start()
    there.start()
    docker.start()
    yield Sites(directory, hub, here, there, docker)
    docker.stop()
    there.terminate()
    here.terminate()
    hub.stop()


def mirror(process: MirrorProcess, *arguments: str, code: int = 0) -> str:
    command = [sys.executable, "-m", "mirror", arguments[0]]
    command += ["--config", str(process.directory / "mirror.toml"), *arguments[1:]]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False
    )
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


def run(*command: str) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def carried(sites: Sites) -> Path:
    """The file that was written here."""
    file = sites.directory / "carried.tar"
    mirror(sites.here, "export", "carried:1", "-o", str(file))
    return file


def pull_and_run(sites: Sites, image: str) -> None:
    sites.docker.docker("pull", image)
    said = sites.docker.docker("run", "--rm", "--network", "none", image)
    assert said == "carried by hand"
    sites.docker.docker("rmi", image)


def test_docker_pulls_what_was_exported_here_and_imported_there(
    sites: Sites, carried: Path
) -> None:
    assert "carried:1" in mirror(sites.there, "import", str(carried))
    pull_and_run(sites, "carried:1")
    assert sites.there.terminate() == 0
    sites.there.start()
    pull_and_run(sites, "carried:1")
    fetched = 'mirror_upstream_bytes_total{kind="blob",upstream="docker.io"}'
    assert sites.there.metrics().get(fetched, 0) == 0


def test_skopeo_reads_what_was_exported(sites: Sites, carried: Path) -> None:
    manifest = json.loads(run("skopeo", "inspect", "--raw", f"oci-archive:{carried}"))
    assert len(manifest["layers"]) == 4
    registry = f"docker://127.0.0.1:{sites.hub.port}/library"
    plain = ("--src-tls-verify=false", "--dest-tls-verify=false")
    run("skopeo", "copy", *plain, "--format=oci", f"{registry}/carried:1", f"{registry}/oci:1")
    file, directory = f"{sites.directory}/oci.tar", f"{sites.directory}/written/"
    for target, kind in (file, "oci-archive"), (directory, "oci"):
        mirror(sites.here, "export", "oci:1", "carried:1", "-o", target)
        name = f"{kind}:{target}:docker.io/library/oci:1"
        assert len(json.loads(run("skopeo", "inspect", name))["Layers"]) == 4
        run("skopeo", "copy", name, f"dir:{sites.directory}/unpacked")


def test_docker_loads_what_was_exported(sites: Sites, carried: Path) -> None:
    assert "carried:1" in sites.docker.docker("load", "-i", str(carried))
    said = sites.docker.docker("run", "--rm", "--network", "none", "carried:1")
    assert said == "carried by hand"
    sites.docker.docker("rmi", "carried:1")


def test_what_skopeo_wrote_is_imported(sites: Sites) -> None:
    file = sites.directory / "skopeo.tar"
    source = f"docker://127.0.0.1:{sites.hub.port}/library/carried:1"
    run("skopeo", "copy", "--src-tls-verify=false", source, f"oci-archive:{file}:whatever")
    told = mirror(sites.there, "import", str(file), code=1)
    assert "has no name; set one with --as" in told
    mirror(sites.there, "import", str(file), "--as", "by-skopeo:1")
    pull_and_run(sites, "by-skopeo:1")


def test_what_an_old_docker_saved_is_refused_with_what_to_do(sites: Sites, carried: Path) -> None:
    sites.docker.docker("load", "-i", str(carried))
    file = sites.directory / "saved.tar"
    sites.docker.docker("save", "carried:1", "-o", str(file))
    sites.docker.docker("rmi", "carried:1")
    with tarfile.open(file) as saved:
        if "oci-layout" in saved.getnames():
            assert "docker.io/library/carried:1: " in mirror(sites.there, "import", str(file))
            return
    told = mirror(sites.there, "import", str(file), code=1)
    assert "not an OCI image layout; docker save writes one from Docker 25 on" in told
