"""The page at ``/``, for the person who opens the mirror in a browser."""

from dataclasses import dataclass

from aiohttp import web

from mirror.web.exchange import EXCHANGE


@dataclass(frozen=True, slots=True)
class StatusFace:
    """What this is, what it serves, how to point a client at it."""

    version: str
    upstreams: tuple[str, ...]
    default: str

    async def page(self, request: web.BaseRequest) -> web.Response:
        """Plain text, with the address under which the reader found it."""
        origin = request[EXCHANGE].origin
        host = origin.host if origin.host.isascii() else ""
        address = f"{origin.scheme}://{host or 'localhost'}"
        others = "\n".join(f"  {name}" for name in self.upstreams)
        return web.Response(
            text=f"mirror {self.version}: a pull-through cache for container images\n\n"
            f"Serves\n{others}\n\n"
            f"Docker, {self.default} (/etc/docker/daemon.json, then restart Docker):\n"
            f'  {{"registry-mirrors": ["{address}"]}}\n\n'
            f"Figures: {address}/metrics\n"
        )
