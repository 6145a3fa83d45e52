"""Handlers for monitoring: liveness, readiness, metrics."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from aiohttp import web


@dataclass(frozen=True, slots=True)
class Condition:
    """Whether the mirror can serve, and a short text that says how it is."""

    ready: bool
    text: str


@dataclass(frozen=True, slots=True)
class HealthHandler:
    """``/healthz``, ``/readyz`` and ``/metrics``.

    ``figures`` renders the metrics for an Accept field and names their content type.
    """

    condition: Callable[[], Condition]
    figures: Callable[[str], Awaitable[tuple[bytes, str]]]

    async def alive(self, request: web.BaseRequest) -> web.Response:
        """Answer 200 while the process and its event loop run."""
        return web.Response(text="ok\n")

    async def ready(self, request: web.BaseRequest) -> web.Response:
        """Answer 200 if the mirror can serve, else 503; upstreams are not asked: hits need none."""
        condition = self.condition()
        return web.Response(text=f"{condition.text}\n", status=200 if condition.ready else 503)

    async def elsewhere(self, request: web.BaseRequest) -> web.Response:
        """Answer 404 where clients connect if the metrics have a port of their own."""
        return web.Response(text="see [server] metrics_listen of this mirror\n", status=404)

    async def metrics(self, request: web.BaseRequest) -> web.Response:
        """Answer with the metrics in Prometheus' text format, or in OpenMetrics."""
        body, content_type = await self.figures(request.headers.get("Accept", ""))
        return web.Response(body=body, headers={"Content-Type": content_type})
