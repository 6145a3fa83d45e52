"""An HTTP proxy that forwards requests and opens tunnels, and remembers what it was asked."""

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import Self


@dataclass
class FakeProxy:
    """Listens on a free port of the loopback; every name leads to ``ports`` of the loopback.

    ``refusal``: the status of its answer to everything, 0 for none.
    """

    ports: dict[str, int] = field(default_factory=dict)
    refusal: int = 0
    asked: list[str] = field(default_factory=list)
    logins: list[str] = field(default_factory=list)

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await self._forward(reader, writer)
        writer.close()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        first, *fields = head.removesuffix("\r\n\r\n").split("\r\n")
        method, target, _ = first.split(" ")
        self.asked.append(f"{method} {target}")
        kept = []
        for line in fields:
            name, _, value = line.partition(": ")
            if name.lower() == "proxy-authorization":
                self.logins.append(value)
            elif name.lower() != "connection":
                kept.append(line)
        if self.refusal:
            writer.write(f"HTTP/1.1 {self.refusal} No\r\nContent-Length: 0\r\n\r\n".encode())
            await writer.drain()
            return
        host, _, path = target.removeprefix("http://").partition("/")
        server, out = await asyncio.open_connection("127.0.0.1", self.ports[host.split(":")[0]])
        if method == "CONNECT":
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        else:
            lines = [f"{method} /{path} HTTP/1.1", *kept, "Connection: close", "", ""]
            out.write("\r\n".join(lines).encode())
        await asyncio.gather(_copied(reader, out), _copied(server, writer))


async def _copied(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()
