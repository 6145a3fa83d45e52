"""For machines that watch: alive, able to serve, figures."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from aiohttp import web


@dataclass(frozen=True, slots=True)
class Condition:
    """Whether the mirror can serve, and in a few words how it is."""

    ready: bool
    text: str


@dataclass(frozen=True, slots=True)
class HealthHandler:
    """``/healthz``, ``/readyz`` and ``/metrics``.

    ``figures`` renders the metrics and names their content type.
    """

    condition: Callable[[], Condition]
    figures: Callable[[], Awaitable[tuple[bytes, str]]]

    async def alive(self, request: web.BaseRequest) -> web.Response:
        """The process runs and its loop turns."""
        return web.Response(text="ok\n")

    async def ready(self, request: web.BaseRequest) -> web.Response:
        """It can serve; upstream is not asked, because hits need none."""
        condition = self.condition()
        return web.Response(text=f"{condition.text}\n", status=200 if condition.ready else 503)

    async def metrics(self, request: web.BaseRequest) -> web.Response:
        """Prometheus's text format."""
        body, content_type = await self.figures()
        return web.Response(body=body, headers={"Content-Type": content_type})
