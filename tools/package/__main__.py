"""The Debian package: ``python -m tools.package [--output DIRECTORY] [--python /usr/bin/python3]``.

It holds the mirror and the Python packages of ``config/constraints.txt`` for the Python of this
Debian release, apart from Debian's own; ``dpkg-deb`` packs it.
"""

import argparse
import gzip
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Final

from mirror import __version__
from mirror.cli.service import configuration, deployed, unit
from tools.package.manual import completions, manual

_ROOT: Final = Path(__file__).parents[2]
_SCRIPTS: Final = _ROOT / "config" / "debian"
_NAME: Final = "container-mirror"
_LIBRARY: Final = f"usr/lib/{_NAME}"
#: -I: neither the environment, nor the user's packages, nor the current directory.
_LAUNCHER: Final = f"""\
#!/usr/bin/python3 -I
import sys

sys.path.insert(0, "/{_LIBRARY}")

from mirror.cli.root import main

main()
"""
_CONTROL: Final = """\
Package: {name}
Version: {version}
Architecture: {architecture}
Maintainer: The mirror authors <maintainers@container-mirror.invalid>
Installed-Size: {size}
Depends: python3 (>= {python}), python3 (<< {next_python}), init-system-helpers,
 systemd | systemd-standalone-sysusers | systemd-sysusers
Recommends: ca-certificates
Section: net
Priority: optional
Homepage: {homepage}
Description: {description}
 It stands between container clients (Docker, containerd, Podman, BuildKit) and
 registries: what was pulled once comes from its disk, verified, also while the
 registry is slow, limits requests, or is down.
"""


def build(output: Path, python: str) -> Path:
    """Build the package for ``python`` in ``output``; return its path.

    Raises:
        subprocess.CalledProcessError: pip or dpkg-deb failed.
    """
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as directory:
        stage = Path(directory)
        stage.chmod(0o755)
        _install_libraries(stage / _LIBRARY, python)
        for name, text in _files().items():
            _write(stage / name, text)
        (stage / "usr/bin/mirror").chmod(0o755)
        page = gzip.compress(manual().encode(), mtime=0)
        (stage / "usr/share/man/man1").mkdir(parents=True)
        (stage / "usr/share/man/man1/mirror.1.gz").write_bytes(page)
        _describe(stage, python)
        command = [
            "dpkg-deb",
            "--root-owner-group",
            "-Zxz",
            "-z1",
            "--build",
            directory,
            str(output),
        ]
        said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return Path(said.rpartition(" in '")[2].rstrip("'.\n"))


def uv(*arguments: str, **environment: str) -> None:
    """Run ``uv`` with the package index of pip's environment.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    given = {"UV_SYSTEM_CERTS": "1", **os.environ, **environment}
    if index := os.environ.get("PIP_INDEX_URL"):
        given.setdefault("UV_DEFAULT_INDEX", index)
    subprocess.run([sys.executable, "-m", "uv", "--quiet", *arguments], env=given, check=True)


def _install_libraries(target: Path, python: str) -> None:
    constraints = str(_ROOT / "config" / "constraints.txt")
    options = ["--python", python, "--constraints", constraints, "--target", str(target)]
    uv("pip", "install", *options, str(_ROOT))
    shutil.rmtree(target / "bin")  # the launcher replaces it


def _files() -> dict[str, str]:
    """Return the other files by path."""
    return {
        "usr/bin/mirror": _LAUNCHER,
        "etc/mirror/mirror.toml": configuration(),
        "usr/lib/systemd/system/mirror.service": unit("/usr/bin/mirror"),
        "usr/lib/systemd/system/mirror.socket": deployed("mirror.socket"),  # off until enabled
        "usr/lib/sysusers.d/mirror.conf": deployed("mirror.sysusers"),
        f"usr/share/doc/{_NAME}/copyright": (_ROOT / "LICENSE").read_text(),
        **{f"usr/share/{name}": text for name, text in completions().items()},
    }


def _describe(stage: Path, python: str) -> None:
    project = tomllib.loads((_ROOT / "pyproject.toml").read_text())["project"]
    major, minor = map(int, _said(python, "-c", "import sys; print(*sys.version_info[:2])").split())
    size = sum(path.lstat().st_size for path in stage.rglob("*"))
    system = platform.freedesktop_os_release()
    control = _CONTROL.format(
        name=_NAME,
        version=f"{__version__}+{system['ID']}{system.get('VERSION_ID', '')}",
        architecture=_said("dpkg", "--print-architecture"),
        size=size // 1024,
        python=f"{major}.{minor}",
        next_python=f"{major}.{minor + 1}",
        homepage=project["urls"]["Source"],
        description=project["description"],
    )
    _write(stage / "DEBIAN/control", control)
    _write(stage / "DEBIAN/conffiles", "/etc/mirror/mirror.toml\n")
    for script in _SCRIPTS.iterdir():
        shutil.copy(script, stage / "DEBIAN")


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _said(*command: str) -> str:
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tools.package", description=__doc__)
    parser.add_argument("--output", type=Path, default=_ROOT / "dist")
    parser.add_argument("--python", default="/usr/bin/python3")
    arguments = parser.parse_args()
    print(build(arguments.output, arguments.python))
