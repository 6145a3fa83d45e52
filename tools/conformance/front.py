"""A proxy that sends reads to the mirror, and writes to the registry."""

import asyncio
import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import aiohttp
from aiohttp import web
from yarl import URL

from tests.peers.process import free_port

_HOP: Final = {"connection", "transfer-encoding", "content-length", "host", "date", "server"}


@contextmanager
def front(mirror: str, registry: str) -> Iterator[str]:
    """Serve in a thread; yields the base URL."""
    port, ready, loop = free_port(), threading.Event(), asyncio.new_event_loop()
    stopping = asyncio.Event()

    async def serve() -> None:
        async with aiohttp.ClientSession(auto_decompress=False) as session:

            async def handle(request: web.BaseRequest) -> web.StreamResponse:
                reads = request.method in {"GET", "HEAD"} and "/blobs/uploads/" not in request.path
                return await _passed(request, session, mirror if reads else registry)

            runner = web.ServerRunner(web.Server(handle))
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", port).start()
            ready.set()
            await stopping.wait()
            await runner.cleanup()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    ready.wait(10)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        loop.call_soon_threadsafe(stopping.set)
        thread.join()
        loop.close()


async def _passed(
    request: web.BaseRequest, session: aiohttp.ClientSession, where: str
) -> web.StreamResponse:
    headers = [(name, value) for name, value in request.headers.items() if name.lower() not in _HOP]
    headers.append(("Host", request.host))  # so that an upload continues at the same address
    async with session.request(
        request.method,
        URL(where + request.raw_path, encoded=True),
        headers=headers,
        data=io.BytesIO(await request.content.read()),  # without the limit of request.read()
        allow_redirects=False,
    ) as answer:
        kept = [(name, value) for name, value in answer.headers.items() if name.lower() not in _HOP]
        response = web.Response(status=answer.status, headers=kept, body=await answer.read())
        if request.method == "HEAD" and answer.content_length is not None:
            response.headers["Content-Length"] = str(answer.content_length)
        return response
