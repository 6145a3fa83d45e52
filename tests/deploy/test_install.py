"""Wheel and Debian package: built, installed where nothing of them was, one pull through each."""

import fcntl
import os
import platform
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from tests.peers.distribution import Distribution
from tests.peers.image import push_image
from tests.peers.process import Process, accepts, free_port
from tests.peers.requirements import lacking, need
from tools.package.__main__ import build, uv

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800), pytest.mark.long]

ROOT = Path(__file__).parents[2]
_CACHE = Path.home() / ".cache/mirror-clients"
_CONFIGURATION = "etc/mirror/mirror.toml"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Distribution]:
    need("docker-registry", "skopeo")
    registry = Distribution(tmp_path_factory.mktemp("hub"))
    registry.start()
    push_image(registry.url, "library/demo", "1", "hello", [1_000_000])
    yield registry
    registry.stop()


def run(*command: str | Path, **environment: str) -> str:
    done = subprocess.run(
        command,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def copy_twice(port: int, hub: Distribution, directory: Path) -> None:
    """Copy the image ``demo:1`` through a mirror: from the registry, then from the cache."""
    before = hub.blob_requests()
    copies = []
    for name in ("first", "second"):
        image = f"docker://127.0.0.1:{port}/library/demo:1"
        run("skopeo", "copy", "--quiet", "--src-tls-verify=false", image, f"dir:{directory / name}")
        copies.append({path.name: path.read_bytes() for path in (directory / name).iterdir()})
    assert copies[0] == copies[1]
    assert hub.blob_requests() - before == len(copies[0]) - 2  # no manifest, no version


def pull_through(
    command: Sequence[str], hub: Distribution, directory: Path, settings: Mapping[str, str]
) -> None:
    """Run an installed mirror, and copy an image through it."""
    port = free_port()
    environment = {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "MIRROR_UPSTREAMS__DOCKER_IO__URL": hub.url,
    }
    environment |= {"MIRROR_SERVER__LAME_DUCK": "0s", "MIRROR_CACHE__MIN_FREE": "0", **settings}
    serve = [*command, "serve", "--listen", f"127.0.0.1:{port}"]
    mirror = Process(serve, directory / "log", environment)
    try:
        mirror.wait_until(lambda: accepts(port))
        copy_twice(port, hub, directory)
    finally:
        assert mirror.terminate() == 0, mirror.output()


def test_the_wheel_serves_a_pull_from_an_empty_environment(hub, tmp_path):
    dist, tools, commands = tmp_path / "dist", tmp_path / "tools", tmp_path / "bin"
    # The sdist, and the wheel from it, as `python -m build` does.
    uv("tool", "run", "--from", "build==1.6.1", "pyproject-build", "--outdir", str(dist), str(ROOT))
    files = sorted(map(str, dist.iterdir()))
    assert [file.rpartition(".")[2] for file in files] == ["whl", "gz"]
    uv("tool", "run", "twine@7.0.0", "check", "--strict", *files)
    with zipfile.ZipFile(files[0]) as wheel:
        (metadata,) = (name for name in wheel.namelist() if name.endswith("/METADATA"))
        readme = wheel.read(metadata).decode()
    assert "(https://github.com/container-mirror/mirror/blob/main/docs/" in readme
    assert not re.search(r"\]\((?!https://)|src(set)?=\"(?!https://)", readme)  # PyPI has no files
    places = {"UV_TOOL_DIR": str(tools), "UV_TOOL_BIN_DIR": str(commands)}
    uv("tool", "install", "--python", sys.executable, files[0], **places)
    program = str(commands / "mirror")
    pull_through([program], hub, tmp_path, {"MIRROR_CACHE__DIRECTORY": str(tmp_path / "cache")})
    root = tmp_path / "root"
    told = run(program, "install-service", "--dry-run", "--root", root, "--program", "/opt/mirror")
    assert f"would write {root}/{_CONFIGURATION}" in told


@pytest.fixture
def clean_root(tmp_path: Path) -> Path:
    """This Debian release with its Python and without anything of ours."""
    need("debootstrap", "dpkg-deb", "chroot", root=True)
    if platform.freedesktop_os_release().get("ID") != "debian":
        lacking("needs Debian")
    release = platform.freedesktop_os_release()["VERSION_CODENAME"]
    root, archive = tmp_path / "root", _CACHE / f"{release}.tar"
    root.mkdir()
    _CACHE.mkdir(parents=True, exist_ok=True)
    with (_CACHE / "debootstrap.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not archive.exists():
            include = "--include=python3,systemd,ca-certificates"
            run("debootstrap", "--variant=minbase", include, release, root)
            run("tar", "-C", root, "-cf", f"{archive}.new", ".")
            Path(f"{archive}.new").rename(archive)
    run("tar", "-C", root, "-xf", archive)
    return root


def test_the_package_serves_a_pull_on_a_clean_root_and_purge_leaves_nothing(
    hub, clean_root, tmp_path
):
    package = shutil.copy(build(tmp_path, "/usr/bin/python3"), clean_root)
    name = f"/{Path(package).name}"

    def inside(*command: str) -> str:
        return run("chroot", clean_root, *command, DEBIAN_FRONTEND="noninteractive", LC_ALL="C")

    inside("apt-get", "install", "--yes", "--no-install-recommends", name)
    assert "mirror" in inside("id", "mirror")
    assert inside("systemctl", "is-enabled", "mirror") == "enabled\n"
    run("systemd-analyze", "verify", "--man=no", f"--root={clean_root}", "mirror.service")
    assert (clean_root / "usr/share/man/man1/mirror.1.gz").exists()
    completing = {"_MIRROR_COMPLETE": "complete_bash", "COMP_WORDS": "mirror se", "COMP_CWORD": "1"}
    assert run("chroot", clean_root, "mirror", **completing) == "serve\n"

    cache, file = clean_root / "var/cache/mirror", clean_root / _CONFIGURATION
    (state := clean_root / "var/lib/mirror").mkdir()  # as systemd does, for the CA of proxy mode
    inside("install", "-d", "-o", "mirror", "-g", "mirror", "/var/cache/mirror")  # as systemd does
    as_user = ["chroot", "--userspec=mirror:mirror", str(clean_root), "/usr/bin/mirror"]
    pull_through(as_user, hub, tmp_path, {"XDG_CACHE_HOME": "/var/cache"})

    file.write_text(edited := "[tags]\nmax_age = '1h'\n")
    inside("dpkg", "--install", name)  # an upgrade
    assert file.read_text() == edited
    inside("apt-get", "remove", "--yes", "container-mirror")
    assert not (clean_root / "usr/bin/mirror").exists()
    assert not (clean_root / "usr/lib/container-mirror").exists()
    assert file.read_text() == edited
    assert [*cache.glob("**/sha256/**/*")]
    assert state.exists()
    inside("apt-get", "purge", "--yes", "container-mirror")
    assert not cache.exists()
    assert not state.exists()
    assert not file.parent.exists()
