"""The programs to compare: nginx in three roles, distribution, the mirror.

Each is configured for speed as its documentation says, with its access log in a file by default.
nginx runs with one worker, like the mirror.
"""

import os
import subprocess
import sys
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from tests.peers.process import Process, accepts, free_port
from tools.bench.corpus import MANIFEST_TYPE, REPOSITORY, Corpus

FULL_SPEED = 0


class Answering(Protocol):
    """A server as clients see it, and the pid of its processes."""

    @property
    def port(self) -> int: ...

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


_NGINX = """\
{user}
daemon off;
pid {directory}/pid;
error_log {directory}/error.log;
worker_processes {workers};
events {{ worker_connections 4096; }}
http {{
    access_log {access_log};
    sendfile on;
    keepalive_requests 1000000000;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
{http}
}}
"""

_STATIC = """\
    server {{
        listen 127.0.0.1:{port} backlog=1024;
        root {root};
        tcp_nopush on;
        limit_rate {limit_rate};
        {log}
        location = /v2/ {{
            add_header Docker-Distribution-Api-Version registry/2.0;
            return 200 "{{}}";
        }}
        location /v2/{repository}/manifests/ {{
            types {{}}
            default_type {manifest_type};
            {header}
        }}
        location /v2/ {{ types {{}} default_type application/octet-stream; }}
    }}
"""
_OPEN_FILES = "    open_file_cache max=10000 inactive=1h;\n    open_file_cache_valid 1h;\n"
_ORIGIN = """\
    log_format origin '$server_port $request_method $uri $body_bytes_sent';
    map $uri $digest {{
        "~(?<named>sha256:[0-9a-f]+)$" $named;
        {tag} {digest};
    }}
"""

# tcp_nopush stays off: it delays small responses by 40 ms, the client's delayed acknowledgement.
_PROXY = """\
    proxy_cache_path {directory}/cache levels=1:2 keys_zone=bench:16m inactive=1d
                     max_size=100g use_temp_path=off;
    server {{
        listen 127.0.0.1:{port} backlog=1024;
        aio threads;
        location / {{
            proxy_pass http://127.0.0.1:{upstream};
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_cache bench;
            proxy_cache_valid 200 1d;
            proxy_cache_lock on;
            proxy_cache_lock_age 10m;
            proxy_cache_lock_timeout 10m;
        }}
    }}
"""

_REGISTRY = """\
version: 0.1
log: {{level: error, accesslog: {{disabled: {quiet}}}}}
storage: {{filesystem: {{rootdirectory: {directory}/data}}}}
http: {{addr: "127.0.0.1:{port}"}}
proxy: {{remoteurl: "http://127.0.0.1:{upstream}"}}
"""


class _Nginx:
    def __init__(
        self, directory: Path, ports: list[int], workers: int, *, access_log: bool = True
    ) -> None:
        self._access_log = f"{directory}/access.log" if access_log else "off"
        self.directory = directory
        self.port = ports[0]
        self._ports = ports
        self._workers = workers

    def start(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        config = self.directory / "nginx.conf"
        user = "user root;" if os.geteuid() == 0 else ""  # www-data may not read the directory
        config.write_text(
            _NGINX.format(
                user=user,
                directory=self.directory,
                workers=self._workers,
                access_log=self._access_log,
                http=self._http(),
            )
        )
        self._process = Process(["nginx", "-c", str(config)], self.directory / "log")
        self._process.wait_until(lambda: all(map(accepts, self._ports)))

    def stop(self) -> None:
        self._process.terminate()

    @property
    def pid(self) -> int:
        return self._process.pid

    def _http(self) -> str:
        raise NotImplementedError


class StaticFiles(_Nginx):
    """P3: nginx serves the files of the corpus by sendfile."""

    def __init__(self, directory: Path, root: Path, *, access_log: bool = True) -> None:
        super().__init__(directory, [free_port()], workers=1, access_log=access_log)
        self._root = root

    def _http(self) -> str:
        return _OPEN_FILES + _static(self.port, self._root, FULL_SPEED)


class Origin(_Nginx):
    """The upstream: the same files, on a port for each rate; it records the bytes sent."""

    def __init__(self, directory: Path, corpus: Corpus, rates: list[int]) -> None:
        """``rates`` in bytes per second and connection."""
        self._rates = {rate: free_port() for rate in rates}
        super().__init__(directory, list(self._rates.values()), workers=2, access_log=False)
        self._corpus = corpus

    def door(self, rate: int) -> Door:
        """The port with this rate."""
        return Door(self._rates[rate], self.pid)

    def sent(self, path: str) -> int:
        """Bytes of an object sent since the start, over all ports."""
        lines = (self.directory / "requests.log").read_text().splitlines()
        return sum(int(line.rpartition(" ")[2]) for line in lines if f" {path} " in line)

    def _http(self) -> str:
        by_digest, by_tag = self._corpus.manifest
        log = f"access_log {self.directory}/requests.log origin;"
        header = "add_header Docker-Content-Digest $digest;"
        return _ORIGIN.format(tag=by_tag, digest=by_digest.rpartition("/")[2]) + "".join(
            _static(port, self._corpus.root, rate, log, header)
            for rate, port in self._rates.items()
        )


def _static(port: int, root: Path, limit_rate: int, log: str = "", header: str = "") -> str:
    return _STATIC.format(
        port=port,
        root=root,
        limit_rate=limit_rate,
        log=log,
        header=header,
        repository=REPOSITORY,
        manifest_type=MANIFEST_TYPE,
    )


class ProxyCache(_Nginx):
    """P2: nginx proxy_cache."""

    def __init__(self, directory: Path, upstream: int, *, access_log: bool = True) -> None:
        super().__init__(directory, [free_port()], workers=1, access_log=access_log)
        self._upstream = upstream

    def _http(self) -> str:
        return _PROXY.format(directory=self.directory, port=self.port, upstream=self._upstream)


@dataclass
class Distribution:
    """P1: Debian's docker-registry as a pull-through cache."""

    directory: Path
    upstream: int
    port: int = field(default_factory=free_port)
    access_log: bool = True

    def start(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        config = self.directory / "config.yml"
        config.write_text(
            _REGISTRY.format(
                directory=self.directory,
                port=self.port,
                upstream=self.upstream,
                quiet=str(not self.access_log).lower(),
            )
        )
        command = ["docker-registry", "serve", str(config)]
        self._process = Process(command, self.directory / "log")
        self._process.wait_until(lambda: accepts(self.port))

    def stop(self) -> None:
        self._process.terminate()

    @property
    def pid(self) -> int:
        return self._process.pid


@dataclass
class Mirror:
    """The mirror; one worker, and the log as it is by default, unless ``settings`` change that."""

    directory: Path
    upstream: int
    settings: Mapping[str, str] = field(default_factory=dict)
    port: int = field(default_factory=free_port)

    def start(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        own = {
            "MIRROR_CONFIG": os.devnull,  # not a configuration in /etc of this machine
            "MIRROR_SERVER__LISTEN": f"127.0.0.1:{self.port}",
            "MIRROR_SERVER__LAME_DUCK": "0s",
            "MIRROR_CACHE__DIRECTORY": str(self.directory / "cache"),
            "MIRROR_CACHE__MIN_FREE": "0",
            "MIRROR_TAGS__MAX_AGE": "1d",
            "MIRROR_UPSTREAMS__DOCKER_IO__URL": f"http://127.0.0.1:{self.upstream}",
        }
        command = [sys.executable, "-m", "mirror", "serve"]
        environment = _environment() | own | dict(self.settings)
        self._process = Process(command, self.directory / "log", environment)
        self._process.wait_until(self._ready)

    def stop(self) -> None:
        self._process.terminate()

    @property
    def pid(self) -> int:
        return self._process.pid

    def _ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/readyz", timeout=5) as said:
                return bool(said.status == 200)
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
