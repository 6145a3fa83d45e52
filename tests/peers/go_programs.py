"""Clients written in Go: each version is built once per user, and kept outside the repository."""

import fcntl
import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.peers.requirements import lacking, need
from tools.conformance.suite import go_version


@dataclass(frozen=True)
class _Pin:
    package: str
    version: str
    go: tuple[int, ...]  # the oldest Go that its go.mod allows


_PINS = {
    "crane": _Pin("github.com/google/go-containerregistry/cmd/crane", "v0.22.1", (1, 25, 0)),
    "regctl": _Pin("github.com/regclient/regclient/cmd/regctl", "v0.11.7", (1, 26, 0)),
    "compose": _Pin("github.com/compose-spec/compose-go/v2/cmd", "v2.16.2", (1, 24)),
    "helm": _Pin("helm.sh/helm/v4/cmd/helm", "v4.3.1", (1, 26, 0)),
    "oras": _Pin("oras.land/oras/cmd/oras", "v1.3.6", (1, 26, 7)),
}
_CACHE = Path.home() / ".cache/mirror-clients/bin"
_BUILD_SECONDS = 400


def go_program(name: str) -> Path:
    """Return the path of a client; build it if this user has not built this version before."""
    pin = _PINS[name]
    program = _CACHE / f"{name}-{pin.version}"
    _CACHE.mkdir(parents=True, exist_ok=True)
    with (_CACHE / f"{name}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not program.exists():
            _build(pin, program)
    return program


def _build(pin: _Pin, program: Path) -> None:
    need("go")
    if (found := go_version()) < pin.go:
        needed, installed = (".".join(map(str, version)) for version in (pin.go, found))
        pytest.skip(f"{program.name} needs Go {needed}, and Go {installed} is installed")
    with tempfile.TemporaryDirectory(dir=_CACHE) as directory:
        done = subprocess.run(
            ["go", "install", "-trimpath", "-ldflags=-s -w", f"{pin.package}@{pin.version}"],
            env=os.environ | {"GOBIN": directory},
            capture_output=True,
            text=True,
            timeout=_BUILD_SECONDS,
            check=False,
        )
        if done.returncode != 0:
            lacking(f"{program.name} cannot be built: {done.stderr[-2000:]}")
        (built,) = Path(directory).iterdir()
        built.rename(program)
