"""The programs to compare: distribution, and the mirror; `tools.bench.nginx` has the others.

Each is configured for speed as its documentation says, with its access log in a file by default.
"""

import json
import os
import ssl
import subprocess
import sys
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.client import HTTPResponse
from pathlib import Path
from typing import Protocol

from tests.peers.process import Process, accepts, free_port

FULL_SPEED = 0
FULL_SPEED_TLS = -1  # the same over TLS


class Answering(Protocol):
    """A server as clients see it, and the pid of its processes."""

    @property
    def port(self) -> int: ...

    @property
    def url(self) -> str: ...

    @property
    def pid(self) -> int: ...


class Server(Answering, Protocol):
    """A program that answers on a port of the loopback."""

    def start(self) -> None: ...

    def stop(self) -> None: ...


@dataclass(frozen=True)
class Door:
    """One port of a server with several."""

    port: int
    pid: int

    @property
    def url(self) -> str:
        return url_of(self.port)


_ANY_CERTIFICATE = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
_ANY_CERTIFICATE.check_hostname = False
_ANY_CERTIFICATE.verify_mode = ssl.CERT_NONE


def opened(url: str, headers: Mapping[str, str] = {}) -> HTTPResponse:
    """The response to a GET; certificates are not verified."""
    request = urllib.request.Request(url, headers=dict(headers))
    response = urllib.request.urlopen(request, timeout=120, context=_ANY_CERTIFICATE)
    assert isinstance(response, HTTPResponse), "of an http or https URL"
    return response


def url_of(port: int, certificate: Path | None = None) -> str:
    return f"{'https' if certificate else 'http'}://127.0.0.1:{port}"


class Program:
    """A program that ``start`` of a subclass starts."""

    port: int
    certificate: Path | None
    _process: Process

    def stop(self) -> None:
        self._process.terminate()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def url(self) -> str:
        return url_of(self.port, self.certificate)


@dataclass
class Distribution(Program):
    """P1: Debian's docker-registry as a pull-through cache; with another ``program``, P4.

    ``settings`` are sections of its configuration, instead of those for files and memory.
    """

    directory: Path
    upstream: int
    port: int = field(default_factory=free_port)
    access_log: bool = True
    certificate: Path | None = None
    program: str = "docker-registry"
    settings: Mapping[str, object] = field(default_factory=dict)
    upstream_ca: Path | None = None

    def start(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        config = self.directory / "config.yml"
        http: dict[str, object] = {"addr": f"127.0.0.1:{self.port}"}
        if self.certificate:
            http["tls"] = {"certificate": str(self.certificate), "key": str(self.certificate)}
        sections = {
            "version": 0.1,
            "log": {"level": "error", "accesslog": {"disabled": not self.access_log}},
            "storage": {
                "filesystem": {"rootdirectory": str(self.directory / "data")},
                "cache": {"blobdescriptor": "inmemory"},
                "maintenance": {"uploadpurging": {"enabled": False}},
            },
            "http": http,
            "proxy": {"remoteurl": url_of(self.upstream, self.upstream_ca)},
        }
        config.write_text(json.dumps(sections | dict(self.settings)))  # YAML includes JSON
        command = [self.program, "serve", str(config)]
        no_traces = _environment() | {"OTEL_TRACES_EXPORTER": "none"}  # of version 3
        trust = {"SSL_CERT_FILE": str(self.upstream_ca)} if self.upstream_ca else {}
        self._process = Process(command, self.directory / "log", no_traces | trust)
        self._process.wait_until(lambda: accepts(self.port))


@dataclass
class Mirror(Program):
    """The mirror; one worker, and the log as it is by default, unless ``settings`` change that.

    Upstream speaks TLS if ``upstream_ca`` is given: the authority of its certificate.
    """

    directory: Path
    upstream: int
    settings: Mapping[str, str] = field(default_factory=dict)
    port: int = field(default_factory=free_port)
    certificate: Path | None = None
    upstream_ca: Path | None = None

    def start(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        own = {
            "MIRROR_CONFIG": os.devnull,  # not a configuration in /etc of this machine
            "MIRROR_SERVER__LISTEN": f"127.0.0.1:{self.port}",
            "MIRROR_SERVER__LAME_DUCK": "0s",
            "MIRROR_CACHE__DIRECTORY": str(self.directory / "cache"),
            "MIRROR_CACHE__MIN_FREE": "0",
            "MIRROR_TAGS__MAX_AGE": "1d",
            "MIRROR_UPSTREAMS__DOCKER_IO__URL": url_of(self.upstream, self.upstream_ca),
        }
        if self.upstream_ca:
            own["MIRROR_FETCH__CA_FILE"] = str(self.upstream_ca)
        if self.certificate:
            own["MIRROR_SERVER__TLS_CERTIFICATE"] = str(self.certificate)
            own["MIRROR_SERVER__TLS_KEY"] = str(self.certificate)
        command = [sys.executable, "-m", "mirror", "serve"]
        environment = _environment() | own | dict(self.settings)
        self._process = Process(command, self.directory / "log", environment)
        self._process.wait_until(self._ready)

    def _ready(self) -> bool:
        try:
            with opened(f"{self.url}/readyz") as said:
                return said.status == 200
        except OSError:
            return False


def mirror_knows(**settings: str) -> bool:
    """Whether the mirror has these configuration keys (``server__workers="2"``)."""
    keys = {f"MIRROR_{name.upper()}": value for name, value in settings.items()}
    environment = _environment() | {"MIRROR_CONFIG": os.devnull} | keys
    command = [sys.executable, "-m", "mirror", "check"]
    return (
        subprocess.run(command, env=environment, capture_output=True, check=False).returncode == 0
    )


def _environment() -> dict[str, str]:
    """This process's environment, without coverage and without settings of a mirror."""
    return {
        name: value for name, value in os.environ.items() if not name.startswith(("COV", "MIRROR_"))
    }
