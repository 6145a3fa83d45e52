"""nginx as a cache and as a server of files, with one worker like the mirror, and as upstream."""

import os
from pathlib import Path

from tests.peers.process import Process, accepts, free_port
from tools.bench.corpus import MANIFEST_TYPE, REPOSITORY, Corpus
from tools.bench.servers import FULL_SPEED, FULL_SPEED_TLS, Door, Program, url_of

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
{tls}
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
        listen {listen};
        root {root};
        tcp_nopush on;
        limit_rate {limit_rate};
        {log}
{tls}
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
_NGINX_TLS = """\
    ssl_certificate {file};
    ssl_certificate_key {file};
    ssl_protocols TLSv1.3;
    output_buffers 1 256k;
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
        listen {listen};
        aio threads;
        location / {{
            proxy_pass {upstream};
            proxy_ssl_protocols TLSv1.3;
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


class _Nginx(Program):
    def __init__(
        self,
        directory: Path,
        ports: list[int],
        workers: int,
        *,
        access_log: bool = True,
        certificate: Path | None = None,
    ) -> None:
        self.certificate = certificate
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
                tls=_NGINX_TLS.format(file=self.certificate) if self.certificate else "",
                http=self._http(),
            )
        )
        self._process = Process(["nginx", "-c", str(config)], self.directory / "log")
        self._process.wait_until(lambda: all(map(accepts, self._ports)))

    def _http(self) -> str:
        raise NotImplementedError

    def _listen(self, port: int) -> str:
        return f"127.0.0.1:{port} backlog=1024{' ssl' if self.certificate else ''}"


class StaticFiles(_Nginx):
    """P3: nginx serves the files of the corpus by sendfile."""

    def __init__(
        self,
        directory: Path,
        root: Path,
        *,
        access_log: bool = True,
        certificate: Path | None = None,
    ) -> None:
        super().__init__(
            directory, [free_port()], workers=1, access_log=access_log, certificate=certificate
        )
        self._root = root

    def _http(self) -> str:
        return _OPEN_FILES + _static(self._listen(self.port), self._root, FULL_SPEED)


class Origin(_Nginx):
    """The upstream: the same files, on a port for each rate; it records the bytes sent."""

    def __init__(
        self, directory: Path, corpus: Corpus, rates: list[int], certificate: Path
    ) -> None:
        """``rates`` in bytes per second and connection; ``certificate`` for FULL_SPEED_TLS."""
        self._origin_certificate = certificate
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
        servers = _ORIGIN.format(tag=by_tag, digest=by_digest.rpartition("/")[2])
        for rate, port in self._rates.items():
            listen, file = self._listen(port), None
            if rate == FULL_SPEED_TLS:
                listen, file = f"{listen} ssl", self._origin_certificate
            servers += _static(listen, self._corpus.root, max(rate, 0), log, header, file)
        return servers


def _static(
    listen: str,
    root: Path,
    limit_rate: int,
    log: str = "",
    header: str = "",
    certificate: Path | None = None,
) -> str:
    return _STATIC.format(
        listen=listen,
        root=root,
        limit_rate=limit_rate,
        log=log,
        tls=_NGINX_TLS.format(file=certificate) if certificate else "",
        header=header,
        repository=REPOSITORY,
        manifest_type=MANIFEST_TYPE,
    )


class ProxyCache(_Nginx):
    """P2: nginx proxy_cache."""

    def __init__(
        self,
        directory: Path,
        upstream: int,
        *,
        access_log: bool = True,
        certificate: Path | None = None,
        upstream_ca: Path | None = None,
    ) -> None:
        """``upstream_ca``: upstream speaks TLS; its certificate is not verified, by default."""
        super().__init__(
            directory, [free_port()], workers=1, access_log=access_log, certificate=certificate
        )
        self._upstream = url_of(upstream, upstream_ca)

    def _http(self) -> str:
        listen = self._listen(self.port)
        return _PROXY.format(directory=self.directory, listen=listen, upstream=self._upstream)
