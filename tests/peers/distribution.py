"""Debian's docker-registry (distribution 2.8.2) as upstream, with its own access log."""

import contextlib
import re
import ssl
import urllib.error
import urllib.request
import uuid
from dataclasses import dataclass, field
from pathlib import Path

from tests.peers.process import Process, accepts, free_port
from tests.waiting import LIMIT_SECONDS

_CONFIG = """\
version: 0.1
log: {{level: warn, accesslog: {{disabled: false}}}}
storage: {{filesystem: {{rootdirectory: {root}}}}}
http: {{addr: "127.0.0.1:{port}"{tls}}}
"""
_AUTH = """\
auth: {{htpasswd: {{realm: office, path: {users}}}}}
"""
_TLS = ", tls: {{certificate: {file}, key: {file}}}"
_ACCESS = re.compile(r'"(GET|HEAD) (/v2/\S*) HTTP/1.1" (\d{3})')
_WRITTEN = re.compile(r'"(POST|PUT|PATCH|DELETE) (/v2/\S*) HTTP/1.1" (\d{3})')


@dataclass
class Distribution:
    """A registry on a port of its own; content stays over stop and start.

    With ``users``, an htpasswd file, nobody else may read or write; it is read at every start.

    With ``certificate``, a PEM file with a key in it, it speaks TLS.
    """

    directory: Path
    port: int = field(default_factory=free_port)
    users: Path | None = None
    certificate: Path | None = None

    def start(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        config = self.directory / "config.yml"
        text = _CONFIG.format(
            root=self.directory / "data",
            port=self.port,
            tls="" if self.certificate is None else _TLS.format(file=self.certificate),
        )
        if self.users is not None:
            text += _AUTH.format(users=self.users)
        config.write_text(text)
        log = self.directory / "log"
        self._process = Process(["docker-registry", "serve", str(config)], log)
        self._process.wait_until(lambda: accepts(self.port))

    def stop(self) -> None:
        self._process.terminate()

    @property
    def url(self) -> str:
        return f"{'http' if self.certificate is None else 'https'}://127.0.0.1:{self.port}"

    def requests(self) -> list[tuple[str, str]]:
        """Method and path of every read that was answered, since the first start."""
        return [(method, path) for method, path, _ in _ACCESS.findall(self._log())]

    def writes(self) -> list[tuple[str, str]]:
        """Method and path of everything that was to be written, since the first start."""
        return [(method, path) for method, path, _ in _WRITTEN.findall(self._log())]

    def fetched(self) -> list[str]:
        """Paths of the blobs whose bytes were sent, not of those that were refused."""
        return [
            path
            for method, path, status in _ACCESS.findall(self._log())
            if method == "GET" and "/blobs/sha256:" in path and status.startswith("2")
        ]

    def _log(self) -> str:
        """The log, once it has a request of our own: a line comes after the answer."""
        log = self.directory / "log"
        if accepts(self.port):
            mark = f"/{uuid.uuid4()}"
            trust = None
            if self.certificate is not None:
                trust = ssl.create_default_context(cafile=str(self.certificate))
                trust.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
            with contextlib.suppress(urllib.error.HTTPError):
                urllib.request.urlopen(self.url + mark, timeout=LIMIT_SECONDS, context=trust)
            self._process.wait_until(lambda: mark in log.read_text(errors="replace"))
        return log.read_text(errors="replace")

    def blob_requests(self) -> int:
        """How often a blob was asked for."""
        return sum("/blobs/sha256:" in path for _, path in self.requests())
