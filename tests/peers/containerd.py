"""Debian's containerd with its ctr, on a socket of its own."""

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.peers.process import Process


@dataclass
class Containerd:
    """A daemon with its data below ``directory``."""

    directory: Path

    def start(self) -> None:
        self.directory.mkdir(exist_ok=True)
        config = self.directory / "config.toml"
        config.write_text(
            f'version = 2\nroot = "{self.directory}/root"\nstate = "{self.directory}/state"\n'
            'disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.snapshotter.v1.btrfs",'
            ' "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper"]\n'
            f'[grpc]\naddress = "{self._socket}"\n'
        )
        command = ["containerd", "--config", str(config)]
        self._process = Process(command, self.directory / "log", dict(os.environ))
        self._process.wait_until(self._answers)

    def stop(self) -> None:
        self._process.terminate()

    def ctr(
        self, *arguments: str, environment: Mapping[str, str] | None = None
    ) -> "subprocess.CompletedProcess[str]":
        """Run ctr."""
        return subprocess.run(
            ["ctr", "--address", str(self._socket), *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    @property
    def _socket(self) -> Path:
        return self.directory / "sock"

    def _answers(self) -> bool:
        return self.ctr("--timeout", "5s", "version").returncode == 0
