"""Azurite, Microsoft's emulator of Azure Blob Storage, from npm (``azurite``)."""

import base64
import fcntl
import hashlib
import hmac
import os
import shutil
import subprocess
import urllib.request
from email.utils import formatdate
from pathlib import Path

import pytest

from tests.peers.process import Process, accepts, free_port
from tests.peers.requirements import lacking

CONTAINER = "images"
_VERSION = "3.35.0"
_CACHE = Path.home() / f".cache/mirror-clients/azurite-{_VERSION}"
_INSTALL_SECONDS = 600
#: Those of the emulator, which its manual gives.
_ACCOUNT = "devstoreaccount1"
_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
_API = "2021-12-02"


class Azurite:
    """A server of blobs with one container."""

    def __init__(self, directory: Path) -> None:
        self._port = free_port()
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        #: The environment of a mirror that uses it.
        self.environment = {
            "AZURE_STORAGE_USE_EMULATOR": "true",
            "AZURITE_BLOB_STORAGE_URL": f"http://127.0.0.1:{self._port}",
            "AZURE_STORAGE_ACCOUNT_NAME": _ACCOUNT,
            "AZURE_STORAGE_ACCOUNT_KEY": _KEY,
        }

    def start(self) -> None:
        address = ("--blobHost", "127.0.0.1", "--blobPort", str(self._port))
        quiet = ("--silent", "--disableTelemetry", "--skipApiVersionCheck")
        command = [str(_program()), *address, *quiet, "--location", str(self._directory)]
        self._process = Process(command, self._directory / "log")
        try:
            self._process.wait_until(lambda: accepts(self._port))
            self._make()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        self._process.kill()

    def _make(self) -> None:
        """Make the container (REST API of Azure Storage, "Create Container" and "Shared Key")."""
        fields = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": _API}
        named = "".join(f"{name}:{value}\n" for name, value in fields.items())
        resource = f"/{_ACCOUNT}/{_ACCOUNT}/{CONTAINER}\nrestype:container"
        signed = "PUT" + 12 * "\n" + named + resource
        key = base64.b64decode(_KEY)
        signature = base64.b64encode(hmac.digest(key, signed.encode(), hashlib.sha256)).decode()
        fields["Authorization"] = f"SharedKey {_ACCOUNT}:{signature}"
        url = f"http://127.0.0.1:{self._port}/{_ACCOUNT}/{CONTAINER}?restype=container"
        fields["Content-Length"] = "0"
        request = urllib.request.Request(url, headers=fields, method="PUT")
        with urllib.request.urlopen(request, timeout=30) as response:
            assert response.status == 201


def _program() -> Path:
    """Return the path of the server; install it if this user has not done so before."""
    program = _CACHE / "node_modules/.bin/azurite-blob"
    if not program.exists() and not os.environ.get("MIRROR_ALL_CLIENTS"):
        pytest.skip("Azurite takes 190 MB: set MIRROR_ALL_CLIENTS=1")
    if shutil.which("npm") is None:
        lacking("needs npm")
    _CACHE.mkdir(parents=True, exist_ok=True)
    with (_CACHE / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not program.exists():
            options = ("--no-audit", "--no-fund", f"--prefix={_CACHE}")
            command = ["npm", "install", *options, f"azurite@{_VERSION}"]
            subprocess.run(command, check=True, capture_output=True, timeout=_INSTALL_SECONDS)
    return program
