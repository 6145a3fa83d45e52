"""A registry over TLS that answers as told and remembers every byte it was sent."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trustme
from aiohttp import web

Answer = Callable[[web.BaseRequest], web.StreamResponse]


@dataclass
class Recorder:
    """``answer`` makes the answer once the body is read; ``early`` before it is."""

    answer: Answer = lambda _: web.Response(status=404)
    early: Answer | None = None
    hang: asyncio.Event | None = None
    url: str = ""
    ca: bytes = b""
    seen: list[tuple[str, str, list[tuple[str, str]], bytes]] = field(default_factory=list)
    arrived: asyncio.Queue[bytes] = field(default_factory=asyncio.Queue)

    def fields(self, name: str, at: int = -1) -> list[str]:
        return [value for key, value in self.seen[at][2] if key.lower() == name.lower()]

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if self.early is not None and (answer := self.early(request)) is not None:
            return answer
        body = b""
        async for piece in request.content.iter_any():
            body += piece
            self.arrived.put_nowait(piece)
        if self.hang is not None:
            await self.hang.wait()
        fields = [(k.decode(), v.decode()) for k, v in request.raw_headers]
        self.seen.append((request.method, request.raw_path, fields, body))
        return self.answer(request)


@asynccontextmanager
async def recording() -> AsyncIterator[Recorder]:
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    recorder = Recorder(ca=authority.cert_pem.bytes())
    server = web.Server(recorder.handle, max_field_size=65536, max_line_size=65536)
    runner = web.ServerRunner(server, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    recorder.url = f"https://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield recorder
    finally:
        await runner.cleanup()
