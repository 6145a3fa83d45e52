"""A TCP proxy that breaks what passes through it, on purpose."""

import asyncio
import contextlib
import socket
import ssl
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Self

_PIECE = 64 * 1024
_RESET = struct.pack("ii", 1, 0)


@dataclass
class FaultProxy:
    """In front of the server at ``target``, a port of the loopback.

    ``cut``: a connection is reset after so many bytes of the server.  ``rate``: bytes per second
    of a connection from the server.  ``flip``: one bit of that byte of the server is flipped, on
    each connection.  ``tls``: it speaks TLS to its clients.
    """

    target: int
    host: str = "127.0.0.1"  # where it listens
    cut: int | None = None
    rate: float | None = None
    flip: int | None = None
    tls: ssl.SSLContext | None = None
    port: int = 0
    _passing: asyncio.Event = field(default_factory=asyncio.Event)
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)

    @property
    def url(self) -> str:
        return f"{'https' if self.tls else 'http'}://{self.host}:{self.port}"

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Self]:
        self._passing.set()
        await self.listen()
        try:
            yield self
        finally:
            self.close()

    async def listen(self) -> None:
        """Accept connections, again after :meth:`close`."""
        self._server = await asyncio.start_server(
            self._accepted, self.host, self.port, ssl=self.tls
        )
        self.port = self._server.sockets[0].getsockname()[1]

    def close(self) -> None:
        """Refuse connections, and reset the open ones."""
        self._server.close()
        self.resume()
        for writer in list(self._writers):
            _reset(writer)

    def hang(self) -> None:
        """Accept connections and pass nothing on."""
        self._passing.clear()

    def resume(self) -> None:
        self._passing.set()

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        there = None
        try:
            back, there = await asyncio.open_connection("127.0.0.1", self.target)
            await asyncio.gather(self._passed(reader, there), self._returned(back, writer))
        except OSError:
            pass  # one of both has gone
        finally:
            self._writers.discard(writer)
            for each in (writer, *([there] if there else ())):
                each.close()

    async def _passed(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while piece := await reader.read(_PIECE):
            await self._passing.wait()
            writer.write(piece)
            await writer.drain()
        with contextlib.suppress(OSError):
            writer.write_eof()

    async def _returned(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sent = 0
        while piece := await reader.read(_PIECE):
            await self._passing.wait()
            if self.rate is not None:
                await asyncio.sleep(len(piece) / self.rate)
            if self.cut is not None and sent + len(piece) > self.cut:
                writer.write(piece[: self.cut - sent])
                await writer.drain()
                _reset(writer)
                return
            if self.flip is not None and sent <= self.flip < sent + len(piece):
                at = self.flip - sent
                piece = piece[:at] + bytes([piece[at] ^ 1]) + piece[at + 1 :]
            sent += len(piece)
            writer.write(piece)
            await writer.drain()
        writer.close()


def _reset(writer: asyncio.StreamWriter) -> None:
    raw = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()
