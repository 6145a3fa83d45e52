"""Where clients and monitoring connect, and which clients are admitted."""

import contextlib
import ipaddress
import ssl
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from aiohttp import web

from mirror import logs
from mirror.config.fields import UNIX_PROXIES
from mirror.config.model import Config, ServerConfig
from mirror.http.admission import Admission, CheckReplica
from mirror.http.forwarded import Proxies
from mirror.http.htpasswd import Htpasswd, HtpasswdError
from mirror.http.server_options import ServerLimits
from mirror.http.tls import Certificate, TlsSite
from mirror.server.listeners import ACCEPTED_AT_ONCE, Listener
from mirror.server.open_files import bounds
from mirror.server.shared_state import SharedState
from mirror.store.interface import IndexUnavailableError
from mirror.user_error import UserError

_MONITOR_SECONDS: Final = 1.0  # of a scrape that has begun when the mirror ends


async def listen(
    runner: web.ServerRunner, listeners: Iterable[Listener], context: ssl.SSLContext | None
) -> None:
    """Accept clients, over TLS if there is a ``context``; unix sockets never use TLS."""
    for listener in listeners:
        if context is not None and listener.over_tcp:
            await TlsSite(runner, listener.raw, context, ACCEPTED_AT_ONCE).start()
        else:
            await web.SockSite(runner, listener.raw, backlog=ACCEPTED_AT_ONCE).start()
        listener.queue_many()


@dataclass(frozen=True, slots=True)
class HealthHandler:
    """``/healthz``, ``/readyz`` and ``/metrics``; the same under every configuration."""

    shared_state: SharedState

    async def alive(self, _: web.BaseRequest) -> web.Response:
        """Answer 200 while the process and its event loop run."""
        return web.Response(text="ok\n")

    async def ready(self, _: web.BaseRequest) -> web.Response:
        """Answer 200 if the mirror can serve, else 503; upstreams are not asked: hits need none."""
        if self.shared_state.stopping.is_set():
            return web.Response(text="stopping\n", status=503)
        trouble = self.shared_state.store.objects.health.reason
        # A mirror that cannot store still serves: taking it out of service would break pulls.
        text = f"ready, but nothing is kept: {trouble}" if trouble else "ready"
        return web.Response(text=f"{text}\n")

    async def elsewhere(self, _: web.BaseRequest) -> web.Response:
        """Answer 404 where clients connect if the metrics have a port of their own."""
        return web.Response(text="see [server] metrics_listen of this mirror\n", status=404)

    async def metrics(self, request: web.BaseRequest) -> web.Response:
        """Answer with the metrics in Prometheus' text format, or in OpenMetrics."""
        store, metrics = self.shared_state.store, self.shared_state.metrics
        with contextlib.suppress(OSError, IndexUnavailableError):  # then the last known values
            usage = await store.objects.usage()
            held = usage.used_bytes, usage.overhead_bytes
            metrics.cache_holds(*held, usage.objects, usage.max_bytes, usage.free_bytes)
        metrics.log_dropped(logs.dropped())
        body, content_type = metrics.rendered(request.headers.get("Accept", ""))
        return web.Response(body=body, headers={"Content-Type": content_type})


@contextlib.asynccontextmanager
async def monitored(listeners: Iterable[Listener], health: HealthHandler) -> AsyncIterator[None]:
    """Serve metrics and health on ports of their own, without TLS, to all who reach them.

    These ports answer also while clients have used up the connections of the other ports.
    """
    app = web.Application()
    app.router.add_get("/metrics", health.metrics)
    app.router.add_get("/healthz", health.alive)
    app.router.add_get("/readyz", health.ready)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=_MONITOR_SECONDS)
    await runner.setup()
    try:
        for listener in listeners:
            await web.SockSite(runner, listener.raw, backlog=ACCEPTED_AT_ONCE).start()
            listener.queue_many()
        yield
    finally:
        await runner.cleanup()


@contextlib.contextmanager
def opened_admission(
    config: Config, check_replica: CheckReplica | None = None
) -> Iterator[Admission]:
    """The admission rules of a configuration; ``check_replica`` as in :class:`Admission`.

    Raises:
        UserError: the password file cannot be used.
    """
    networks = [ipaddress.ip_network(text) for text in config.access.networks]
    if not config.access.htpasswd_file:
        yield Admission(networks, None, check_replica)
        return
    try:
        users = Htpasswd(Path(config.access.htpasswd_file))
    except (OSError, HtpasswdError) as error:
        raise UserError(f"{config.access.htpasswd_file}: {error}") from error
    with contextlib.closing(users):
        yield Admission(networks, users, check_replica)


def proxies(config: Config) -> Proxies:
    """Proxies whose ``Forwarded`` and ``X-Forwarded-*`` fields are believed."""
    trusted = config.server.trusted_proxies
    networks = [ipaddress.ip_network(text) for text in trusted if text != UNIX_PROXIES]
    return Proxies(networks, UNIX_PROXIES in trusted)


def certificate(config: Config) -> Certificate | None:
    """The certificate to serve with, None for plain HTTP.

    Raises:
        UserError: the certificate or its key cannot be used.
    """
    server = config.server
    if not server.tls_certificate:
        return None
    try:
        return Certificate(Path(server.tls_certificate), Path(server.tls_key))
    except OSError as error:
        raise certificate_error(server, error) from error


def certificate_error(server: ServerConfig, error: OSError) -> UserError:
    """The error for a certificate that cannot be used, with the reason."""
    reason = error.strerror
    if isinstance(error, ssl.SSLError):  # reason: KEY_VALUES_MISMATCH, None for no PEM at all
        words = (error.reason or "no certificate or key in PEM").replace("_", " ").lower()
        reason = words.replace("pem", "PEM")
    return UserError(
        f"tls_certificate {server.tls_certificate} with tls_key {server.tls_key} "
        f"cannot be used: {reason}"
    )


def server_limits(config: Config) -> ServerLimits:
    limits = config.limits
    return ServerLimits(
        bounds(config).connections,
        limits.connections_per_client,
        limits.idle_timeout.seconds,
        config.server.drain.seconds,
    )
