"""containerd with its ctr, on a socket of its own; Debian's, or another release."""

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.peers.process import Process
from tests.waiting import LIMIT_SECONDS

_NO_CRI = ', "io.containerd.grpc.v1.cri"'
#: By the version of the configuration.
_CRI = {
    2: """\
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "native"
[plugins."io.containerd.grpc.v1.cri".registry]
config_path = "{hosts}"
""",
    3: """\
[plugins."io.containerd.nri.v1.nri"]
disable = true  # its socket has one place on a machine
[plugins."io.containerd.cri.v1.images"]
snapshotter = "native"
[plugins."io.containerd.cri.v1.images".registry]
config_path = "{hosts}"
[[plugins."io.containerd.transfer.v1.local".unpack_config]]
platform = "linux"
snapshotter = "native"
differ = "walking"
""",
}


@dataclass
class Containerd:
    """A daemon with its data below ``directory``.

    With ``cri``, the directory of its ``hosts.toml`` files, it serves Kubernetes too (CRI).
    """

    directory: Path
    cri: Path | None = None
    programs: tuple[str, str] = ("containerd", "ctr")
    version: int = 2  # of the configuration; containerd 2 has version 3

    def start(self, environment: Mapping[str, str] | None = None) -> None:
        self.directory.mkdir(exist_ok=True)
        config = self.directory / "config.toml"
        cri = _CRI[self.version].format(hosts=self.cri) if self.cri else ""
        config.write_text(
            f"version = {self.version}\n"
            f'root = "{self.directory}/root"\nstate = "{self.directory}/state"\n'
            'disabled_plugins = ["io.containerd.snapshotter.v1.btrfs",'
            ' "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.devmapper"'
            f"{_NO_CRI if self.cri is None else ''}]\n"
            f'[grpc]\naddress = "{self.socket}"\n{cri}'
        )
        command = [self.programs[0], "--config", str(config)]
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
            [self.programs[1], "--address", str(self.socket), *arguments],
            env=environment,
            capture_output=True,
            text=True,
            timeout=LIMIT_SECONDS,
            check=False,
        )

    @property
    def socket(self) -> Path:
        return self.directory / "sock"

    def _answers(self) -> bool:
        return self.ctr("--timeout", "5s", "version").returncode == 0
