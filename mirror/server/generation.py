"""Everything that is built from one configuration, from the upstreams to the server options.

State that outlives a configuration is in ``server.shared_state``.
"""

import contextlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from mirror import logs
from mirror.api.handlers import RegistryHandler
from mirror.api.health import Condition, HealthHandler
from mirror.config.model import Config
from mirror.http.sendfile import Sender
from mirror.http.server_options import Requests, ServerOptions
from mirror.server.access import opened_admission, proxies, server_limits
from mirror.server.open_files import bounds
from mirror.server.proxy import note_of, opened_pushes, proxy_handler
from mirror.server.pulls import Pulls, opened_pulls
from mirror.server.routes import Routes
from mirror.server.shared_state import SharedState
from mirror.server.status import status_handler
from mirror.server.upstreams import directory
from mirror.store.interface import IndexUnavailableError


@dataclass(frozen=True, slots=True, eq=False)
class Generation:
    """The parts built from one configuration."""

    config: Config
    options: ServerOptions
    pulls: Pulls

    async def over(self) -> None:
        """Wait for the end of all requests and fills that began under this configuration."""
        await self.options.requests.over()
        await self.pulls.finish()


@asynccontextmanager
async def opened_generation(config: Config, shared_state: SharedState) -> AsyncIterator[Generation]:
    """Build the server options and pulls of ``config``, and close them after the context.

    Raises:
        UserError: a file, a directory or a proxy named in ``config`` cannot be used.
    """
    async with AsyncExitStack() as stack:
        registries = await stack.enter_async_context(shared_state.upstreams.used(config))
        pulls = await stack.enter_async_context(opened_pulls(config, registries, shared_state))
        pushes = opened_pushes(config, shared_state.store.layout)
        handler = RegistryHandler(
            directory(config),
            pulls.blobs,
            pulls.manifests,
            pulls.listings,
            Sender(shared_state.sending, config.limits.stall_timeout.seconds),
            pulls.client_credentials,
            None if pushes is None else pushes.last,
        )
        status = status_handler(config, shared_state.books, shared_state.store.objects)
        proxy = None
        if pushes is not None:
            pushed = note_of(pushes, shared_state.store, shared_state.table)
            proxy = proxy_handler(config, handler, registries, shared_state.metrics, pushed)
        options = ServerOptions(
            Routes(handler, _health(shared_state), status),
            stack.enter_context(opened_admission(config)),
            proxies(config),
            server_limits(config),
            shared_state.table if bounds(config).hot else None,
            Requests(),
            proxy,
        )
        yield Generation(config, options, pulls)


def _health(shared_state: SharedState) -> HealthHandler:
    store, metrics = shared_state.store, shared_state.metrics

    def condition() -> Condition:
        if shared_state.stopping.is_set():
            return Condition(False, "stopping")
        trouble = store.objects.health.reason
        # A mirror that cannot store still serves: taking it out of service would break pulls.
        return Condition(True, f"ready, but nothing is kept: {trouble}" if trouble else "ready")

    async def figures() -> tuple[bytes, str]:
        with contextlib.suppress(OSError, IndexUnavailableError):  # then the last known values
            usage = await store.objects.usage()
            held = usage.used_bytes, usage.overhead_bytes
            metrics.cache_holds(*held, usage.objects, usage.max_bytes)
        metrics.log_dropped(logs.dropped())
        return metrics.rendered()

    return HealthHandler(condition, figures)
