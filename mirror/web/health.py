"""For machines that watch: alive, able to serve, figures."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from aiohttp import web


@dataclass(frozen=True, slots=True)
class HealthFace:
    """``/healthz``, ``/readyz`` and ``/metrics``.

    ``not_ready`` returns why the mirror cannot serve, empty when it can; ``figures`` renders the
    metrics and names their content type.
    """

    not_ready: Callable[[], Awaitable[str]]
    figures: Callable[[], Awaitable[tuple[bytes, str]]]

    async def alive(self, request: web.BaseRequest) -> web.Response:
        """The process runs and its loop turns."""
        return web.Response(text="ok\n")

    async def ready(self, request: web.BaseRequest) -> web.Response:
        """It can serve; upstream is not asked, because hits need none."""
        reason = await self.not_ready()
        return web.Response(text=f"{reason or 'ready'}\n", status=503 if reason else 200)

    async def metrics(self, request: web.BaseRequest) -> web.Response:
        """Prometheus's text format."""
        body, content_type = await self.figures()
        return web.Response(body=body, headers={"Content-Type": content_type})
