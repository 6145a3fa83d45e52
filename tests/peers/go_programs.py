"""Programs written in Go: each version is built once per user, and kept outside the repository."""

import fcntl
import json
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.peers.requirements import lacking
from tools.conformance.suite import go_version


class NotBuiltError(Exception):
    """A program that cannot be built here; the message is the reason."""


class OldGoError(NotBuiltError):
    """The installed Go is older than the program demands."""


@dataclass(frozen=True)
class _Pin:
    """``go`` is the oldest Go that its go.mod allows.

    ``dear``: its build takes too long for each run.  It is tested where it has been built before,
    or with MIRROR_ALL_CLIENTS=1.
    """

    module: str
    package: str
    version: str
    go: tuple[int, ...]
    dear: bool = False


_CONTAINERD = "github.com/containerd/containerd/v2"
_BUILDKIT = "github.com/moby/buildkit"
_PINS = {
    "crane": _Pin("github.com/google/go-containerregistry", "cmd/crane", "v0.22.1", (1, 25, 0)),
    "regctl": _Pin("github.com/regclient/regclient", "cmd/regctl", "v0.11.7", (1, 26, 0)),
    "compose": _Pin("github.com/compose-spec/compose-go/v2", "cmd", "v2.16.2", (1, 24, 0)),
    "oras": _Pin("oras.land/oras", "cmd/oras", "v1.3.6", (1, 26, 7)),
    "helm": _Pin("helm.sh/helm/v4", "cmd/helm", "v4.3.1", (1, 26, 0)),
    "notation": _Pin("github.com/notaryproject/notation", "cmd/notation", "v1.3.2", (1, 23, 0)),
    "crictl": _Pin("sigs.k8s.io/cri-tools", "cmd/crictl", "v1.37.0", (1, 26, 6)),
    "cosign": _Pin("github.com/sigstore/cosign/v3", "cmd/cosign", "v3.1.3", (1, 26, 0), dear=True),
    "containerd": _Pin(_CONTAINERD, "cmd/containerd", "v2.4.2", (1, 26, 6), dear=True),
    "ctr": _Pin(_CONTAINERD, "cmd/ctr", "v2.4.2", (1, 26, 6), dear=True),
    "buildkitd": _Pin(_BUILDKIT, "cmd/buildkitd", "v0.34.2", (1, 26, 8), dear=True),
    "buildctl": _Pin(_BUILDKIT, "cmd/buildctl", "v0.34.2", (1, 26, 8), dear=True),
    "registry": _Pin(
        "github.com/distribution/distribution/v3", "cmd/registry", "v3.1.2", (1, 26, 0)
    ),
    "versitygw": _Pin("github.com/versity/versitygw", "cmd/versitygw", "v1.8.0", (1, 25, 0)),
}
_CACHE = Path.home() / ".cache/mirror-clients/bin"
_BUILD_SECONDS = 1500
_ATTEMPTS = 3


def go_program(name: str) -> Path:
    """Return the path of a client; the test is skipped where the client cannot be built."""
    if _PINS[name].dear and not _path(name).exists() and not os.environ.get("MIRROR_ALL_CLIENTS"):
        pytest.skip(f"{_path(name).name} takes long to build: set MIRROR_ALL_CLIENTS=1")
    try:
        return built(name)
    except OldGoError as error:
        pytest.skip(str(error))
    except NotBuiltError as error:
        lacking(str(error))


def built(name: str) -> Path:
    """Return the path of a program; build it if this user has not built this version before.

    Raises:
        NotBuiltError: Go is missing or too old, or the build failed.
    """
    program = _path(name)
    _CACHE.mkdir(parents=True, exist_ok=True)
    with (_CACHE / f"{name}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not program.exists():
            _build(_PINS[name], program)
    return program


def _path(name: str) -> Path:
    return _CACHE / f"{name}-{_PINS[name].version}"


def _build(pin: _Pin, program: Path) -> None:
    if shutil.which("go") is None:
        raise NotBuiltError(f"{program.name} is built with Go, and there is no go: install it")
    if (found := go_version()) < pin.go:
        needed, installed = (".".join(map(str, version)) for version in (pin.go, found))
        raise OldGoError(f"{program.name} needs Go {needed}, and Go {installed} is installed")
    # Not `go install`: it asks for the list of all versions, and takes no module with replacements.
    downloaded = _go(program, "mod", "download", "-json", f"{pin.module}@{pin.version}")
    source = json.loads(downloaded)["Dir"]
    with tempfile.TemporaryDirectory(dir=_CACHE) as directory:
        built = Path(directory) / "built"
        options = ["-trimpath", "-ldflags=-s -w", "-o", str(built)]
        _go(program, "build", "-C", source, *options, f"./{pin.package}")
        built.rename(program)


def _go(program: Path, command: str, *arguments: str) -> str:
    """Run go, again if it fails: it does not ask a server twice; return its standard output."""
    for _ in range(_ATTEMPTS):
        try:
            done = subprocess.run(
                ["go", command, *arguments],
                capture_output=True,
                text=True,
                timeout=_BUILD_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise NotBuiltError(f"{program.name} is not built in {error.timeout:g} s") from error
        if done.returncode == 0:
            return done.stdout
    raise NotBuiltError(f"{program.name} cannot be built: {done.stderr[-2000:]}")
