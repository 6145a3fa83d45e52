"""Rows with replicas that share an object store and Redis, beside distribution v3 on the same."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

from tests.cluster.replicas import SECRET, Redis, running_redis
from tests.peers.go_programs import NotBuiltError, built
from tests.peers.process import Process, accepts, free_port
from tools.bench.comparison import (
    MIRROR,
    P4,
    Gate,
    Measured,
    NotAvailableError,
    Result,
    at_most,
    interleaved,
)
from tools.bench.fills import HASH, hashing, through
from tools.bench.load import Sample, redirected
from tools.bench.processes import cpu_seconds, settled_cpu_seconds
from tools.bench.servers import FULL_SPEED, Distribution, Mirror, Program, Server, url_of
from tools.bench.stage import OFFICE_LINE, Stage, need, running, warm

_BUCKET = "images"
_REGION = "us-east-1"
_KEY, _SECRET_KEY = "bench", "0123456789abcdef"
_REPLICAS = 3
_CLIENTS = 24
_SENT_CLIENTS = 400
_STORING_SECONDS = 120

Build = Callable[[Path, int], Server]


@dataclass
class ObjectStore(Program):
    """versitygw: an S3 server with one bucket, whose objects are files."""

    directory: Path
    program: str
    port: int = field(default_factory=free_port)
    certificate: Path | None = None

    def start(self) -> None:
        files, attributes = self.directory / "files", self.directory / "attributes"
        for directory in (files / _BUCKET, attributes):
            directory.mkdir(parents=True)
        server = ["--port", f"127.0.0.1:{self.port}", "--quiet", "--keep-alive"]
        keys = ["--access", _KEY, "--secret", _SECRET_KEY, "--region", _REGION]
        backend = ["posix", "--sidecar", str(attributes), str(files)]
        command = [self.program, *server, *keys, *backend]
        self._process = Process(command, self.directory / "log")
        self._process.wait_until(lambda: accepts(self.port))

    def wait_for(self, path: str) -> None:
        """Wait until a blob is stored, and nothing else is being stored."""
        name = f"*{path.rpartition(':')[2]}*"
        files = self.directory / "files"
        self._process.wait_until(lambda: any(files.rglob(name)), _STORING_SECONDS)
        settled_cpu_seconds(self.pid)


@dataclass(frozen=True)
class Site:
    """What the replicas of one cluster share: a part of the bucket, Redis, a secret."""

    name: str
    store: ObjectStore
    redis: Redis
    secret: Path

    def mirrors(self, count: int, *, redirecting: bool = False) -> list[Build]:
        """Replicas of the mirror."""
        ports = [free_port() for _ in range(count)]
        networks = ["127.0.0.0/8"] if redirecting else []
        more = {"MIRROR_CLUSTER__REDIRECT_NETWORKS": json.dumps(networks)}
        return [
            partial(Mirror, port=port, settings=self._settings(ports, port) | more)
            for port in ports
        ]

    def registries(self, count: int, *, redirecting: bool = False) -> list[Build]:
        """Replicas of distribution v3, which else send the bytes of the bucket themselves."""
        s3 = {
            "regionendpoint": self.store.url,
            "forcepathstyle": True,
            "secure": False,
            "region": _REGION,
            "accesskey": _KEY,
            "secretkey": _SECRET_KEY,
            "bucket": _BUCKET,
            "rootdirectory": f"/{self.name}",
        }
        settings = {
            "storage": {
                "s3": s3,
                "redirect": {"disable": not redirecting},
                "cache": {"blobdescriptor": "redis"},
                "maintenance": {"uploadpurging": {"enabled": False}},
            },
            "redis": {"addrs": [f"127.0.0.1:{self.redis.port}"]},
        }
        return [partial(Distribution, program=_program("registry"), settings=settings)] * count

    def _settings(self, ports: list[int], own: int) -> dict[str, str]:
        return {
            "AWS_ACCESS_KEY_ID": _KEY,
            "AWS_SECRET_ACCESS_KEY": _SECRET_KEY,
            "MIRROR_CLUSTER__OBJECTS": f"s3://{_BUCKET}/{self.name}",
            "MIRROR_CLUSTER__ENDPOINT": self.store.url,
            "MIRROR_CLUSTER__REGION": _REGION,
            "MIRROR_CLUSTER__STATE": self.redis.url,
            "MIRROR_CLUSTER__SECRET_FILE": str(self.secret),
            "MIRROR_CLUSTER__PEERS": json.dumps([url_of(port) for port in ports]),
            "MIRROR_CLUSTER__ADVERTISE": url_of(own),
        }


class Replicas(Protocol):
    """Replicas of one program at a site."""

    def __call__(self, site: Site, count: int, /, *, redirecting: bool = False) -> list[Build]: ...


_KINDS: dict[str, Replicas] = {MIRROR: Site.mirrors, P4: Site.registries}


def warm_bucket(stage: Stage) -> Result:
    """A blob that is in the bucket, through a replica whose disk is empty.

    distribution neither verifies nor stores it: the CPU of hashing the blob is measured beside.
    """
    path = stage.corpus.large
    with _object_store(stage) as store, ExitStack() as ending:
        contestants = {HASH: partial(hashing, stage.corpus.large_bytes)}
        for name, build in _stored(stage, store, ending, redirecting=False).items():
            pulled = partial(through, stage, [build], path, 1, FULL_SPEED)
            contestants[name] = partial(_counted, store, pulled)
        measured = interleaved(stage.scale.rounds, contestants)
    fetched = [sample["fetched"] for sample in measured.samples[MIRROR]]
    return Result(
        _figures(measured),
        [
            at_most("CPU, of P4", 0.8, measured.ratio("cpu", MIRROR, P4)),
            at_most("first byte, of P4", 1, measured.ratio("first_byte", MIRROR, P4)),
            Gate("nothing from upstream", f"{max(fetched):g}", not any(fetched)),
        ],
    )


def redirected_to_bucket(stage: Stage) -> Result:
    """The same blob for clients that are sent to the bucket, which distribution does by default.

    No byte of it passes the servers: what they take does not depend on its size.
    """
    with _object_store(stage) as store, ExitStack() as ending:
        builds = _stored(stage, store, ending, redirecting=True)
        contestants = {name: partial(_redirected, stage, build) for name, build in builds.items()}
        measured = interleaved(stage.scale.rounds, contestants)
    return Result(
        {
            "CPU ms per pull": measured.shown("cpu_pull"),
            "median first byte ms": measured.shown("first_byte"),
        },
        [
            at_most("CPU, of P4", 0.8, measured.ratio("cpu_pull", MIRROR, P4)),
            at_most("first byte, of P4", 1, measured.ratio("first_byte", MIRROR, P4)),
        ],
    )


def _redirected(stage: Stage, build: Build) -> Sample:
    with stage.fresh(build, FULL_SPEED) as server:
        return redirected(server, stage.corpus.large, _SENT_CLIENTS)


def _stored(
    stage: Stage, store: ObjectStore, ending: ExitStack, *, redirecting: bool
) -> dict[str, Build]:
    """Have each server store the large blob in the bucket; return how to start it afresh."""
    builds = {}
    for name, replicas in _KINDS.items():
        site = ending.enter_context(_site(stage, store))
        builds[name] = replicas(site, 1, redirecting=redirecting)[0]
        with stage.fresh(builds[name], FULL_SPEED) as server:
            warm(server, [stage.corpus.large])
            store.wait_for(stage.corpus.large)
    return builds


def cold_herd(stage: Stage) -> Result:
    """A blob that is stored nowhere, for 24 clients at once over three replicas."""
    with _object_store(stage) as store:
        measured = interleaved(
            stage.scale.few_rounds,
            {name: partial(_herd, stage, store, kind) for name, kind in _KINDS.items()},
            fewer={P4: 1},
        )
    fetched = measured.median(MIRROR, "fetched")
    return Result(_figures(measured), [at_most("times from upstream", 1.05, fetched)])


def _herd(stage: Stage, store: ObjectStore, replicas: Replicas) -> Sample:
    with _site(stage, store) as site:
        builds = replicas(site, _REPLICAS)
        pulled = partial(through, stage, builds, stage.corpus.middle, _CLIENTS, OFFICE_LINE)
        return _counted(store, pulled)


def _counted(store: ObjectStore, pulled: Callable[[], Sample]) -> Sample:
    """Add the CPU seconds of the object store."""
    before = cpu_seconds(store.pid)
    sample = pulled()
    return sample | {"store_cpu": settled_cpu_seconds(store.pid) - before}


def _figures(measured: Measured) -> dict[str, dict[str, str]]:
    return {
        "s": measured.shown("seconds"),
        "CPU-s": measured.shown("cpu"),
        "CPU-s of the S3 server": measured.shown("store_cpu"),
        "last first byte ms": measured.shown("first_byte", "{:.0f}"),
        "times from upstream": measured.shown("fetched"),
    }


@contextmanager
def _object_store(stage: Stage) -> Iterator[ObjectStore]:
    need("redis-server")
    _program("registry")
    store = ObjectStore(stage.new_directory(), _program("versitygw"))
    try:
        with running(store):
            yield store
    finally:
        shutil.rmtree(store.directory)


@contextmanager
def _site(stage: Stage, store: ObjectStore) -> Iterator[Site]:
    directory = stage.new_directory()
    directory.mkdir()
    secret = directory / "secret"
    secret.write_text(SECRET)
    with running_redis(directory) as redis:
        yield Site(directory.name, store, redis, secret)


def _program(name: str) -> str:
    try:
        return str(built(name))
    except NotBuiltError as error:
        raise NotAvailableError(str(error)) from error
