"""What rows run on: files, upstream, and servers with warm caches.

Each is started on first use, and ends with the stage.
"""

import hashlib
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import count
from pathlib import Path
from typing import Protocol, Self, TypeVar

import trustme

from tests.peers.go_programs import NotBuiltError, built
from tools.bench.comparison import MIRROR, P1, P2, P3, P4, NotAvailableError, plain, quiet
from tools.bench.corpus import ACCEPT, MIB, Corpus
from tools.bench.load import ClientError
from tools.bench.nginx import Origin, ProxyCache, StaticFiles
from tools.bench.processes import settled_cpu_seconds
from tools.bench.servers import (
    FULL_SPEED,
    FULL_SPEED_TLS,
    Answering,
    Distribution,
    Mirror,
    Server,
    opened,
)


class Startable(Protocol):
    """A program that can be started and stopped."""

    def start(self) -> None: ...

    def stop(self) -> None: ...


class Kind(Protocol):
    """A kind of server that caches what it fetches from a port of the loopback."""

    def __call__(
        self,
        directory: Path,
        upstream: int,
        *,
        certificate: Path | None = None,
        upstream_ca: Path | None = None,
    ) -> Server: ...


AnyServer = TypeVar("AnyServer", bound=Startable)

OFFICE_LINE = 256_000_000  # bytes per second: upstream over a good line
SLOW_LINE = 16 * MIB
GIGABIT_LINE = 41_000_000  # for each of the three connections that dockerd makes
FAR_LINE = 4 * MIB


@dataclass(frozen=True)
class Scale:
    """Amount of measuring: full for real figures, small to test the benchmark itself."""

    large_bytes: int = 1024 * MIB
    objects: int = 1_000_000
    seconds: int = 1
    rounds: int = 5
    few_rounds: int = 3


QUICK = Scale(large_bytes=128 * MIB, objects=20_000, rounds=2, few_rounds=1)


class Stage:
    """Owns a directory and all processes of a run."""

    def __init__(self, directory: Path, scale: Scale) -> None:
        need("nginx", "docker-registry", "wrk")
        self.directory = directory
        self.scale = scale
        self.corpus = Corpus(directory / "www", scale.large_bytes)
        self.listing = directory / "paths"
        self.absent: dict[str, str] = {}  # peers that this machine cannot have, and why
        self._ending = ExitStack()
        self._numbers = count(1)
        self._authority = trustme.CA()
        self._warm_paths: dict[str, set[str]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.close()

    @cached_property
    def origin(self) -> Origin:
        rates = [FULL_SPEED, FULL_SPEED_TLS, OFFICE_LINE, SLOW_LINE, GIGABIT_LINE, FAR_LINE]
        return self._running(Origin(self.new_directory(), self.corpus, rates, self._certificate()))

    @cached_property
    def static(self) -> StaticFiles:
        return self._running(StaticFiles(self.new_directory(), self.corpus.root))

    @cached_property
    def kinds(self) -> dict[str, Kind]:
        """The mirror and its peers that cache; the first use may build one, which takes minutes."""
        kinds: dict[str, Kind] = {MIRROR: Mirror, P1: Distribution, P2: ProxyCache}
        try:
            kinds[P4] = partial(Distribution, program=str(built("registry")))
        except NotBuiltError as error:
            self.absent[P4] = str(error)
        return kinds

    @cached_property
    def servers(self) -> dict[str, Server]:
        """The mirror and its peers, as installed; they run until the end of the stage."""
        upstream = self.origin.door(FULL_SPEED).port
        caching = {
            name: self._running(kind(self.new_directory(), upstream))
            for name, kind in self.kinds.items()
        }
        return caching | {P3: self.static}

    @cached_property
    def quiet_servers(self) -> dict[str, Server]:
        """The same without access logs, where the log's share of the work is worth a figure."""
        upstream = self.origin.door(FULL_SPEED).port
        no_log = {"MIRROR_LOG__ACCESS": "false"}
        return {
            quiet(MIRROR): self._running(Mirror(self.new_directory(), upstream, no_log)),
            quiet(P2): self._running(ProxyCache(self.new_directory(), upstream, access_log=False)),
            quiet(P3): self._running(
                StaticFiles(self.new_directory(), self.corpus.root, access_log=False)
            ),
        }

    @contextmanager
    def over_tls(self, *paths: str) -> Iterator[dict[str, Server]]:
        """Servers that speak TLS, and the mirror without, with these paths in their caches."""
        file = self._certificate()

        def static(directory: Path, _: int) -> StaticFiles:
            return StaticFiles(directory, self.corpus.root, certificate=file)

        builds: dict[str, Callable[[Path, int], Server]] = {
            name: partial(kind, certificate=file) for name, kind in self.kinds.items()
        }
        builds |= {P3: static, plain(MIRROR): Mirror}
        with ExitStack() as ending:
            servers = {
                name: ending.enter_context(self.fresh(build, FULL_SPEED))
                for name, build in builds.items()
            }
            for server in servers.values():
                warm(server, paths)
            yield servers

    def warm(self, *paths: str) -> dict[str, Server]:
        """The servers, with these paths in their caches."""
        return self._warmed(self.servers, paths)

    def warm_quiet(self, *paths: str) -> dict[str, Server]:
        """The servers without access logs, with these paths in their caches."""
        return self._warmed(self.quiet_servers, paths)

    def _warmed(self, servers: dict[str, Server], paths: Iterable[str]) -> dict[str, Server]:
        for name, server in servers.items():
            known = self._warm_paths.setdefault(name, set())
            warm(server, [path for path in paths if path not in known])
            known.update(paths)
        return servers

    @cached_property
    def ca(self) -> Path:
        """The authority of all certificates, as a file."""
        file = self.new_directory()
        self._authority.cert_pem.write_to_path(file)
        return file

    def _certificate(self) -> Path:
        """A file with a new certificate for the loopback, and its key."""
        file, issued = self.new_directory(), self._authority.issue_cert("127.0.0.1")
        issued.private_key_and_cert_chain_pem.write_to_path(file)
        return file

    def new_directory(self) -> Path:
        return self.directory / str(next(self._numbers))

    @contextmanager
    def fresh(self, build: Callable[[Path, int], AnyServer], rate: int) -> Iterator[AnyServer]:
        """A server with an empty cache, removed afterwards; ``rate`` is upstream's."""
        directory = self.new_directory()
        server = build(directory, self.origin.door(rate).port)
        try:
            with running(server):
                yield server
        finally:
            shutil.rmtree(directory)

    def _running(self, server: AnyServer) -> AnyServer:
        return self._ending.enter_context(running(server))


@contextmanager
def running(server: AnyServer) -> Iterator[AnyServer]:
    """Start the server, and stop it at the end."""
    server.start()
    try:
        yield server
    finally:
        server.stop()


def warm(server: Answering, paths: Iterable[str]) -> None:
    """Pull each path once and verify its digest.

    Returns when the server is idle: distribution stores a response only after it.
    """
    for path in paths:
        digest = hashlib.sha256()
        with opened(f"{server.url}{path}", {"Accept": ACCEPT}) as body:
            while piece := body.read(MIB):
                digest.update(piece)
        if "sha256:" in path and not path.endswith(digest.hexdigest()):
            raise ClientError(f"{path} has the digest {digest.hexdigest()}")
    settled_cpu_seconds(server.pid)


def need(*programs: str) -> None:
    """Raise NotAvailableError unless the programs are installed."""
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        raise NotAvailableError(f"needs {', '.join(missing)}: apt-get install them")
