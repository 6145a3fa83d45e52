"""Which handler answers which path: one table, and the registry API for everything else."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

from aiohttp import web

from mirror.web.health import HealthFace
from mirror.web.registry import RegistryFace, raw_path
from mirror.web.status import StatusFace

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class Handlers(Protocol):
    """Who finds the handler of a request."""

    def handler(self, request: web.BaseRequest) -> Handler:
        """The handler of a request."""


class Routes:
    """Finds the handler of a request."""

    def __init__(self, registry: RegistryFace, health: HealthFace, status: StatusFace) -> None:
        self._registry: Handler = registry.answer
        self._table: Mapping[str, Handler] = {
            "/": status.page,
            "/live": status.live,
            "/clients": status.clients,
            **{f"/{name}": status.asset for name in status.assets},
            "/healthz": health.alive,
            "/readyz": health.ready,
            "/metrics": health.metrics,
        }

    def handler(self, request: web.BaseRequest) -> Handler:
        """The handler of a request; what the registry API does not know it refuses itself."""
        if request.method in {"GET", "HEAD"}:
            return self._table.get(raw_path(request), self._registry)
        return self._registry
