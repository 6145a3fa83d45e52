"""Maps paths to handlers: one table; the registry API takes all other paths."""

from collections.abc import Mapping

from aiohttp import web

from mirror.api.handlers import RegistryHandler, raw_path
from mirror.api.health import HealthHandler
from mirror.http.server_options import Handler
from mirror.ui.status import StatusHandler


class Routes:
    """Finds the handler of a request."""

    def __init__(
        self, registry: RegistryHandler, health: HealthHandler, status: StatusHandler
    ) -> None:
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
        """The handler of a request; the registry API rejects paths that it does not know."""
        if request.method in {"GET", "HEAD"}:
            return self._table.get(raw_path(request), self._registry)
        return self._registry
