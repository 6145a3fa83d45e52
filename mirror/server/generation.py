"""All that is made of one configuration: from the upstreams up to what receives clients.

What it stands on, and what outlives it, is the ground (``app.ground``).
"""

import contextlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Final

from mirror import logs
from mirror.api.handlers import RegistryFace
from mirror.api.health import Condition, HealthFace
from mirror.config.model import Config
from mirror.http.sendfile import Sender
from mirror.http.server_options import Reception, Requests
from mirror.server.access import opened_admission, proxies, server_limits
from mirror.server.open_files import bounds
from mirror.server.proxy import note_of, opened_pushes, proxy_face
from mirror.server.pulls import Pulls, opened_pulls
from mirror.server.routes import Routes
from mirror.server.shared_state import Ground
from mirror.server.status import status_face
from mirror.server.upstreams import directory
from mirror.store.local.sqlite import IndexUnavailableError
from mirror.ttl_cache.backend import Backend

_EPHEMERAL_KEYS: Final = 100_000


@dataclass(frozen=True, slots=True, eq=False)
class Edition:
    """What is made of one configuration, and what of it has to come to its end."""

    config: Config
    reception: Reception
    pulls: Pulls

    async def over(self) -> None:
        """Wait until nothing that was begun under it is under way any more."""
        await self.reception.requests.over()
        await self.pulls.finish()


@asynccontextmanager
async def opened_edition(config: Config, ground: Ground) -> AsyncIterator[Edition]:
    """What receives clients as ``config`` says.

    Raises:
        StartError: something that it names cannot be used.
    """
    backend = Backend(_EPHEMERAL_KEYS)
    async with AsyncExitStack() as stack:
        registries = await stack.enter_async_context(ground.upstreams.used(config))
        pulls = await stack.enter_async_context(opened_pulls(config, registries, ground, backend))
        pushes = opened_pushes(config, ground.store.layout)
        face = RegistryFace(
            directory(config),
            pulls.blobs,
            pulls.manifests,
            pulls.listings,
            Sender(ground.sending, config.limits.stall_timeout.seconds),
            pulls.visiting,
            None if pushes is None else pushes.last,
        )
        status = status_face(config, ground.books, ground.store.objects)
        proxy = None
        if pushes is not None:
            pushed = note_of(pushes, ground.store, ground.table)
            proxy = proxy_face(config, face, registries, ground.metrics, pushed)
        reception = Reception(
            Routes(face, _health(ground), status),
            stack.enter_context(opened_admission(config)),
            proxies(config),
            server_limits(config),
            ground.table if bounds(config).hot else None,
            Requests(),
            proxy,
        )
        yield Edition(config, reception, pulls)


def _health(ground: Ground) -> HealthFace:
    store, metrics = ground.store, ground.metrics

    def condition() -> Condition:
        if ground.stopping.is_set():
            return Condition(False, "stopping")
        trouble = store.objects.alarm.reason
        # A mirror that keeps nothing still serves: taking it out of service would break pulls.
        return Condition(True, f"ready, but nothing is kept: {trouble}" if trouble else "ready")

    async def figures() -> tuple[bytes, str]:
        with contextlib.suppress(OSError, IndexUnavailableError):  # then: as last known
            usage = await store.objects.usage()
            held = usage.used_bytes, usage.overhead_bytes
            metrics.cache_holds(*held, usage.objects, usage.max_bytes)
        metrics.log_dropped(logs.dropped())
        return metrics.rendered()

    return HealthFace(condition, figures)
