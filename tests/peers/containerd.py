"""Debian's containerd with its ctr, on a socket of its own."""

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.peers.process import Process

_NO_CRI = ', "io.containerd.grpc.v1.cri"'
_CRI = """\
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "native"
[plugins."io.containerd.grpc.v1.cri".registry]
config_path = "{hosts}"
"""


@dataclass
class Containerd:
    """A daemon with its data below ``directory``.

    With ``cri``, the directory of its ``hosts.toml`` files, it serves Kubernetes too (CRI).
    """

    directory: Path
    cri: Path | None = None

    def start(self, environment: Mapping[str, str] | None = None) -> None:
        self.directory.mkdir(exist_ok=True)
        config = self.directory / "config.toml"
        config.write_text(
            f'version = 2\nroot = "{self.directory}/root"\nstate = "{self.directory}/state"\n'
            'disabled_plugins = ["io.containerd.snapshotter.v1.btrfs",'
            ' "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper"'
            f"{_NO_CRI if self.cri is None else ''}]\n"
            f'[grpc]\naddress = "{self.socket}"\n{_CRI.format(hosts=self.cri) if self.cri else ""}'
        )
        command = ["containerd", "--config", str(config)]
        self._process = Process(
            command, self.directory / "log", {**os.environ, **(environment or {})}
        )
        self._process.wait_until(self._answers)

    def stop(self) -> None:
        self._process.terminate()

    def ctr(
        self, *arguments: str, environment: Mapping[str, str] | None = None
    ) -> "subprocess.CompletedProcess[str]":
        """Run ctr."""
        return subprocess.run(
            ["ctr", "--address", str(self.socket), *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    @property
    def socket(self) -> Path:
        return self.directory / "sock"

    def _answers(self) -> bool:
        return self.ctr("--timeout", "5s", "version").returncode == 0
