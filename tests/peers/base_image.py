"""A base image made of this machine: its Python, the libraries that needs, a shell; no registry.

Stands for python:slim, on a machine that reaches no registry.  Only what the Dockerfile uses.
"""

import importlib.util
import io
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Iterator
from pathlib import Path

from tests.waiting import LIMIT_SECONDS

_SHELL = "/bin/busybox"
#: What compiled packages rest on, and every image of Python has.
_RUNTIMES = (
    *("libgcc_s.so.1", "libstdc++.so.6", "libc.so.6", "libm.so.6", "libdl.so.2", "librt.so.1"),
    *("libpthread.so.0", "libutil.so.1", "libresolv.so.2", "libnss_dns.so.2", "libnss_files.so.2"),
)
_INSTALL = "/usr/bin/install"  # which Debian's busybox lacks
_NOT_NEEDED = frozenset({"test", "tests", "idlelib", "tkinter", "__pycache__", "ensurepip"})
_PACKAGES = frozenset({"site-packages", "dist-packages"})
_AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")


def import_base(docker: list[str], name: str) -> None:
    """Make the image ``name`` with the docker command."""
    binaries = f"{_prefix()}/bin:/usr/local/bin:/usr/bin:/bin"
    changes = [f"ENV PATH={binaries}", "ENV PYTHONDONTWRITEBYTECODE=1"]
    command = [*docker, "import", *(f"--change={change}" for change in changes), "-", name]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as importing:
        assert importing.stdin is not None
        with tarfile.open(fileobj=importing.stdin, mode="w|", dereference=False) as archive:
            _fill(archive)
        importing.stdin.close()
        assert importing.wait(LIMIT_SECONDS) == 0


def _fill(archive: tarfile.TarFile) -> None:
    python, install = Path(sys.executable).resolve(), Path(_INSTALL).resolve()
    library = Path(sysconfig.get_path("stdlib"))
    files = [python, install, *_tree(library), *_extensions_beside(library)]
    extensions = [str(file) for file in files if ".so" in file.suffixes]
    added = set()
    for path in [*map(str, files), *_libraries([str(python), str(install), *extensions])]:
        if path not in added:
            added.add(path)
            archive.add(os.path.realpath(path), path.lstrip("/"), recursive=False)
    pip = importlib.util.find_spec("pip")
    assert pip is not None, "an environment has pip"
    assert pip.origin is not None, "in files"
    top, packages = Path(pip.origin).parent, _packages().lstrip("/")
    for file in _tree(top):
        archive.add(file, f"{packages}/pip/{file.relative_to(top)}", recursive=False)
    archive.add(_SHELL, "bin/busybox", recursive=False)
    _link(archive, "bin/sh", "busybox")
    for link in ("usr/local/bin/python", "usr/local/bin/python3"):
        _link(archive, link, str(python))
    archive.add(_AUTHORITIES.resolve(), str(_AUTHORITIES).lstrip("/"))
    _text(archive, "etc/passwd", "root:x:0:0:root:/root:/bin/sh\n")
    _directory(archive, "tmp", 0o1777)


def _prefix() -> Path:
    return Path(sys.base_prefix)


def _packages() -> str:
    """Where this Python looks for packages, without an environment."""
    code = "import sysconfig; print(sysconfig.get_path('purelib'))"
    return subprocess.check_output([Path(sys.executable).resolve(), "-c", code], text=True).strip()


def _tree(top: Path) -> Iterator[Path]:
    for directory, below, names in os.walk(top):
        below[:] = [
            name
            for name in below
            if name not in _NOT_NEEDED | _PACKAGES and not name.startswith("config-")
        ]
        for name in names:
            if name != "EXTERNALLY-MANAGED":  # which keeps pip from this one's packages
                yield Path(directory, name)


def _extensions_beside(library: Path) -> Iterator[Path]:
    """Compiled modules where they are not below the library itself."""
    beside = Path(sysconfig.get_path("platstdlib")) / "lib-dynload"
    if library not in beside.parents:
        yield from _tree(beside)


def _libraries(binaries: list[str]) -> set[str]:
    """Paths of all shared libraries that are needed, and of the loader."""
    told = subprocess.run(
        ["ldd", *binaries], capture_output=True, text=True, check=False
    ).stdout.splitlines()
    words = (word for line in told for word in line.split() if not line.endswith(":"))
    return {word for word in words if word.startswith("/")} | set(_runtimes())


def _runtimes() -> Iterator[str]:
    ldconfig = shutil.which("ldconfig", path="/usr/sbin:/sbin") or "ldconfig"
    known = subprocess.check_output([ldconfig, "-p"], text=True)
    for name in _RUNTIMES:
        lines = (line for line in known.splitlines() if line.split()[:1] == [name])
        yield next(lines).rpartition("=> ")[2]


def _link(archive: tarfile.TarFile, name: str, target: str) -> None:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = tarfile.SYMTYPE, target
    archive.addfile(member)


def _text(archive: tarfile.TarFile, name: str, text: str) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(text), 0o644
    archive.addfile(member, io.BytesIO(text.encode()))


def _directory(archive: tarfile.TarFile, name: str, mode: int) -> None:
    member = tarfile.TarInfo(name)
    member.type, member.mode = tarfile.DIRTYPE, mode
    archive.addfile(member)
