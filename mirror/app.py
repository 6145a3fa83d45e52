"""The composition root: builds everything leaf to root, owns the order of start and stop."""

import asyncio
import contextlib
import gc
import ipaddress
import logging
import resource
import shutil
import signal
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from aiohttp import web
from yarl import URL

from mirror import __version__, clients
from mirror.config.model import Config, UpstreamConfig, split_listen
from mirror.ephemeral.backend import Backend
from mirror.ephemeral.freshness import Freshness
from mirror.ephemeral.negative import Negatives
from mirror.ephemeral.pages import Pages
from mirror.ephemeral.tokens import Tokens
from mirror.logs import AccessLog, configure
from mirror.metrics import Metrics
from mirror.pull.blobs import BlobPulls
from mirror.pull.listings import ListingPulls
from mirror.pull.manifests import ManifestPulls
from mirror.pull.slots import SlotLimits, Slots
from mirror.store.blobs import Blobs
from mirror.store.database import IndexUnavailableError
from mirror.store.layout import Layout
from mirror.store.manifests import Manifests
from mirror.store.objects import Objects
from mirror.store.scrub import Scrub
from mirror.store.space import Limits
from mirror.store.tags import Tags
from mirror.upstream.authorization import Authorization, Credentials
from mirror.upstream.directory import Directory, Names
from mirror.upstream.endpoints import Endpoints
from mirror.upstream.gate import Gate
from mirror.upstream.registry import Registry
from mirror.upstream.transport import Transport, TransportSettings
from mirror.web.admission import Admission
from mirror.web.exchange import Ending
from mirror.web.health import Condition, HealthFace
from mirror.web.htpasswd import Htpasswd, HtpasswdError
from mirror.web.registry import RegistryFace
from mirror.web.routes import Routes
from mirror.web.sending import Sender
from mirror.web.server import Server, ServerLimits
from mirror.web.status import StatusFace
from mirror.web.tls import Certificate

_log = logging.getLogger(__name__)

_EPHEMERAL_KEYS: Final = 100_000
_PAGES: Final = 1_000
_FILE_THREADS: Final = 16
_SENDING_THREADS: Final = 16  # more than cores: one may wait for a page that is still on the disk
_TEND_SECONDS: Final = 5.0
_GC_THRESHOLDS: Final = (20_000, 20, 50)
_BACKLOG: Final = 1024
_FILES_PER_CONNECTION: Final = 3  # its socket, the blob it reads, and the socket again for sendfile


class StartError(Exception):
    """The mirror cannot start; one line that says why and what to do."""


@dataclass(frozen=True, slots=True)
class _Store:
    layout: Layout
    objects: Objects
    blobs: Blobs
    manifests: Manifests
    tags: Tags


@dataclass(frozen=True, slots=True)
class _Teller:
    """Tells metrics and access log of every request."""

    metrics: Metrics
    log: AccessLog

    def request_ended(self, ending: Ending) -> None:
        self.metrics.request_ended(ending)
        self.log.request_ended(ending)


async def run(config: Config) -> None:
    """Serve until SIGTERM or SIGINT, then finish what is being sent.

    Raises:
        StartError: the mirror cannot start.
    """
    configure(config.log.level, config.log.format, access=config.log.access)
    _allow_open_files(config.limits.connections * _FILES_PER_CONNECTION)
    stopping = asyncio.Event()
    async with serving(config, stopping) as address:
        _announce(config, address)
        # What is there now stays; with a thousand clients the collector took half of the time.
        gc.freeze()
        gc.set_threshold(*_GC_THRESHOLDS)
        await _until_told(stopping)
        _log.info("stopping: finishing what is being sent (at most %s)", config.server.drain.text)


def _allow_open_files(wanted: int) -> None:
    """Use what the system allows: the usual soft limit of 1024 is for programs that use select."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard < wanted:
        _log.warning(
            "the system allows %d open files, too few for [limits] connections: raise LimitNOFILE "
            "(ulimit -Hn) to %d, or lower connections",
            hard,
            wanted,
        )


@asynccontextmanager
async def serving(config: Config, stopping: asyncio.Event) -> AsyncIterator[tuple[str, int]]:
    """Serve while the context is open; yields the host and port it listens on.

    ``stopping`` makes ``/readyz`` say so, for whoever balances load.

    Raises:
        StartError: the mirror cannot start.
    """
    metrics = Metrics(__version__)
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(_opened_store(config, metrics))
        routes = await stack.enter_async_context(_opened_routes(config, store, metrics, stopping))
        admission = stack.enter_context(_opened_admission(config))
        certificate = _certificate(config)
        teller = _Teller(metrics, AccessLog())
        server = Server(routes, teller, _server_limits(config), admission)
        runner = web.ServerRunner(server, shutdown_timeout=config.server.drain.seconds)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        tending = asyncio.create_task(_tend_regularly(store), name="tend")
        stack.callback(tending.cancel)
        if config.cache.scrub.seconds:
            scrub = Scrub(store.objects, store.layout.scrub, config.cache.scrub.seconds)
            scrubbing = asyncio.create_task(scrub.run(), name="scrub")
            stack.callback(scrubbing.cancel)
        changing = [part for part in (certificate, admission.users) if part is not None]
        reloading = asyncio.create_task(_reload_regularly(changing), name="reload")
        stack.callback(reloading.cancel)
        context = None if certificate is None else certificate.context
        yield await _listen(runner, config.server.listen, context)


@asynccontextmanager
async def _opened_store(config: Config, metrics: Metrics) -> AsyncIterator[_Store]:
    layout = Layout(config.cache.directory.absolute())
    disk_bytes = _disk_bytes(layout.root)
    limits = Limits(config.cache.max_size.of(disk_bytes), config.cache.min_free.of(disk_bytes))
    threads = ThreadPoolExecutor(_FILE_THREADS, thread_name_prefix="files")
    objects = Objects(layout, limits, metrics, threads)
    tags = Tags(layout)
    try:
        await objects.open()
    except OSError as error:
        raise _directory_error(config, error) from error
    await tags.open()
    blobs = Blobs(layout, objects, threads)
    try:
        yield _Store(layout, objects, blobs, Manifests(layout, objects, threads), tags)
    finally:
        await objects.close()
        await tags.close()
        threads.shutdown()


def _disk_bytes(directory: Path) -> int:
    """The size of the disk that a directory is, or will be, on."""
    there = next(path for path in (directory, *directory.parents) if path.exists())
    return shutil.disk_usage(there).total


def _directory_error(config: Config, error: Exception) -> StartError:
    reason = error.strerror if isinstance(error, OSError) else error
    return StartError(
        f"the cache directory {config.cache.directory} cannot be used: {reason}; "
        "choose another with --cache-dir or [cache] directory"
    )


@asynccontextmanager
async def _opened_routes(
    config: Config, store: _Store, metrics: Metrics, stopping: asyncio.Event
) -> AsyncIterator[Routes]:
    backend = Backend(_EPHEMERAL_KEYS)
    negatives = Negatives(backend, config.tags.negative_max_age.seconds)
    max_age = config.tags.max_age.seconds
    async with AsyncExitStack() as stack:
        registries = {
            name: await stack.enter_async_context(
                _opened_upstream(name, upstream, config, backend, metrics)
            )
            for name, upstream in config.enabled().items()
        }
        limits = config.limits
        slots = Slots(SlotLimits(limits.downloads, limits.queue, limits.queue_timeout.seconds))
        blobs = BlobPulls(registries, store.blobs, negatives, metrics, slots)
        manifests = ManifestPulls(
            registries,
            store.manifests,
            store.tags,
            Freshness(backend, max_age),
            negatives,
            metrics,
            config.tags.stale_if_error.seconds,
        )
        listings = ListingPulls(registries, Pages(Backend(_PAGES), max_age), negatives)
        for pulls in (blobs, manifests, listings):
            stack.push_async_callback(pulls.close)
        threads = stack.enter_context(ThreadPoolExecutor(_SENDING_THREADS, "send"))
        sender = Sender(threads, limits.stall_timeout.seconds)
        yield Routes(
            RegistryFace(_directory(config), blobs, manifests, listings, sender),
            _health(store, metrics, stopping),
            StatusFace(__version__, tuple(config.enabled()), config.default_upstream()),
        )


@asynccontextmanager
async def _opened_upstream(
    name: str, upstream: UpstreamConfig, config: Config, backend: Backend, metrics: Metrics
) -> AsyncIterator[Endpoints]:
    try:
        credentials = (
            Credentials(upstream.username, upstream.secret()) if upstream.username else None
        )
    except OSError as error:
        raise StartError(f"upstream {name}: password_file: {error.strerror}") from error
    # The credentials are the registry's: a mirror of it is asked as nobody.
    addresses = [*((url, None) for url in upstream.mirrors), (upstream.url, credentials)]
    settings = _transport_settings(config, upstream)
    async with AsyncExitStack() as stack:
        registries = []
        for address, known_as in addresses:
            url = URL(address)
            transport = Transport(name, url.host or "", settings, metrics)
            try:
                await stack.enter_async_context(transport)
            except OSError as error:  # ssl.SSLError is one
                text = f"upstream {name}: ca_file holds no certificate: {error}"
                raise StartError(text) from error
            authorization = Authorization(name, url, transport, Tokens(backend), known_as)
            max_bytes = config.fetch.max_blob_size.bytes
            registry = Registry(name, url, transport, authorization, Gate(name), metrics, max_bytes)
            registries.append(registry)
        yield Endpoints(name, registries)


def _transport_settings(config: Config, upstream: UpstreamConfig) -> TransportSettings:
    return TransportSettings(
        connect_timeout=config.fetch.connect_timeout.seconds,
        first_byte_timeout=config.fetch.first_byte_timeout.seconds,
        idle_timeout=config.fetch.idle_timeout.seconds,
        proxy=upstream.proxy or config.fetch.proxy,
        private_redirects=upstream.private_redirects,
        ca_files=tuple(file for file in (config.fetch.ca_file, upstream.ca_file) if file),
        user_agent=f"mirror/{__version__}",
    )


def _server_limits(config: Config) -> ServerLimits:
    limits = config.limits
    return ServerLimits(
        limits.connections, limits.connections_per_client, limits.idle_timeout.seconds
    )


def _directory(config: Config) -> Directory:
    names = [
        Names(
            name,
            upstream.aliases,
            upstream.hosts,
            upstream.library,
            upstream.allow,
            upstream.deny,
        )
        for name, upstream in config.enabled().items()
    ]
    return Directory(names, config.default_upstream())


def _health(store: _Store, metrics: Metrics, stopping: asyncio.Event) -> HealthFace:
    def condition() -> Condition:
        if stopping.is_set():
            return Condition(False, "stopping")
        trouble = store.objects.alarm.reason
        # A mirror that keeps nothing still serves: taking it out of service would break pulls.
        return Condition(True, f"ready, but nothing is kept: {trouble}" if trouble else "ready")

    async def figures() -> tuple[bytes, str]:
        with contextlib.suppress(OSError, IndexUnavailableError):  # then: as last known
            usage = await store.objects.usage()
            metrics.cache_holds(usage.used_bytes, usage.objects, usage.max_bytes)
        return metrics.rendered()

    return HealthFace(condition, figures)


@contextlib.contextmanager
def _opened_admission(config: Config) -> Iterator[Admission]:
    networks = [ipaddress.ip_network(text) for text in config.access.networks]
    if not config.access.htpasswd_file:
        yield Admission(networks, None)
        return
    try:
        users = Htpasswd(Path(config.access.htpasswd_file))
    except (OSError, HtpasswdError) as error:
        raise StartError(f"{config.access.htpasswd_file}: {error}") from error
    with contextlib.closing(users):
        yield Admission(networks, users)


def _certificate(config: Config) -> Certificate | None:
    server = config.server
    if not server.tls_certificate:
        return None
    try:
        return Certificate(Path(server.tls_certificate), Path(server.tls_key))
    except OSError as error:  # ssl.SSLError is one
        reason = error.reason if isinstance(error, ssl.SSLError) else error.strerror
        raise StartError(
            f"tls_certificate {server.tls_certificate} with tls_key {server.tls_key} "
            f"cannot be used: {reason}"
        ) from error


async def _listen(
    runner: web.ServerRunner, listen: str, context: ssl.SSLContext | None
) -> tuple[str, int]:
    host, port = split_listen(listen)
    site = web.TCPSite(runner, host or None, port, backlog=_BACKLOG, ssl_context=context)
    try:
        await site.start()
    except OSError as error:
        reason = error.strerror or str(error)
        raise StartError(
            f"cannot listen on {listen}: {reason}; choose another with --listen"
        ) from error
    return runner.addresses[0][0], runner.addresses[0][1]


def _announce(config: Config, address: tuple[str, int]) -> None:
    host, _ = split_listen(config.server.listen)
    url = clients.reachable_url(host, address[1], socket.gethostname())
    if config.server.tls_certificate:
        url = url.replace("http:", "https:", 1)
    default = config.default_upstream()
    others = ", ".join(name for name in config.enabled() if name != default)
    local = f"{config.server.listen.rpartition(':')[0]}:{address[1]}"
    lines = [
        f"mirror {__version__} listens on {local} for {default} (default), {others}",
        f"  cache   {config.cache.directory} (at most {config.cache.max_size.text})",
        f'  Docker  put {{"registry-mirrors": ["{url}"]}} into /etc/docker/daemon.json,',
        "          then restart Docker; `mirror client docker` prints it ready to paste",
        f"  figures {url}/metrics",
    ]
    print("\n".join(lines), file=sys.stdout, flush=True)


async def _until_told(stopping: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    await stopping.wait()


async def _reload_regularly(parts: Iterable[Certificate | Htpasswd]) -> None:
    while True:
        await asyncio.sleep(_TEND_SECONDS)
        for part in parts:
            part.reload()


async def _tend_regularly(store: _Store) -> None:
    while True:
        await asyncio.sleep(_TEND_SECONDS)
        await store.objects.flush_touches()
        await store.objects.heal()
        await store.tags.heal()
