"""Bytes between a client and a server, both ways, as they are.

Each side is read only as fast as the other one takes it.  An end of one direction (half-close) is
passed on while the other direction goes on; a reset is passed on as one.
"""

import asyncio
import socket
from typing import Final

from mirror.http.body import break_off

#: The whole answer to a CONNECT that succeeds: no field that would speak of a body.
ESTABLISHED: Final = b"HTTP/1.1 200 Connection established\r\n\r\n"
_HALF_SECONDS: Final = 60.0  # for one direction alone: the other side may well be gone
_LAST_SECONDS: Final = 1.0  # what an idle tunnel has when the mirror stops


class Tunnel:
    """A client and a server that talk to each other."""

    def __init__(self, idle_seconds: float) -> None:
        """End it when nothing has moved for so many seconds."""
        self._loop = asyncio.get_running_loop()
        self._idle_seconds = idle_seconds
        self._moved = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None
        self._over = self._loop.create_future()
        self._client = _End(self)
        self._server = _End(self)
        self._client.other, self._server.other = self._server, self._client

    @property
    def to_client(self) -> int:
        """Bytes that went to the client."""
        return self._server.count

    @property
    def to_server(self) -> int:
        """Bytes that went to the server."""
        return self._client.count

    async def run(self, client: asyncio.Transport, server: socket.socket, early: bytes) -> None:
        """Pass bytes on until both directions have ended; ``early`` came from the client before.

        Raises:
            OSError: the server is gone already.
        """
        try:
            await self._loop.create_connection(lambda: self._server, sock=server)
            client.set_protocol(self._client)
            self._client.connection_made(client)
            client.write(ESTABLISHED)
            if early:
                self._client.data_received(early)
            client.resume_reading()
            self._watch()
            await self._over
        finally:
            self._over.cancel()
            if self._timer is not None:
                self._timer.cancel()
            self._client.abort()
            self._server.abort()

    def wind_down(self) -> None:
        """The mirror stops: end it as soon as nothing moves any more."""
        self._be_idle_at_most(_LAST_SECONDS)

    def half_closed(self) -> None:
        """One direction has ended."""
        self.moved()
        self._be_idle_at_most(_HALF_SECONDS)

    def _be_idle_at_most(self, seconds: float) -> None:
        self._idle_seconds = min(self._idle_seconds, seconds)
        self._watch()

    def moved(self) -> None:
        """Something was passed on, or taken."""
        self._moved = self._loop.time()

    def ended(self, error: BaseException | None) -> None:
        """One side is gone; the other one gets what is on its way to it, or learns of a reset."""
        for end in (self._client, self._server):
            if error is not None:
                end.abort()
            else:
                end.close()
        if self._client.is_lost and self._server.is_lost and not self._over.done():
            self._over.set_result(None)

    def _watch(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._over.done():
            return
        left = self._moved + self._idle_seconds - self._loop.time()
        if left > 0:
            self._timer = self._loop.call_later(left, self._watch)
        else:
            self._client.abort()
            self._server.abort()


class _End(asyncio.Protocol):
    """One side; what comes from it goes to the ``other``."""

    other: "_End"

    def __init__(self, tunnel: Tunnel) -> None:
        self._tunnel = tunnel
        self.transport: asyncio.Transport | None = None
        self.finished = False
        self.is_lost = False
        self.count = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.count += len(data)
        self._tunnel.moved()
        if self.other.transport is not None:
            self.other.transport.write(data)

    def pause_writing(self) -> None:
        if self.other.transport is not None:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        self._tunnel.moved()
        if self.other.transport is not None:
            self.other.transport.resume_reading()

    def eof_received(self) -> bool:
        self.finished = True
        self._tunnel.half_closed()
        if self.other.finished:
            self.close()
            self.other.close()
        elif self.other.transport is not None and not self.other.transport.is_closing():
            self.other.transport.write_eof()
        return True  # the other direction goes on

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_lost = True
        self._tunnel.ended(exc)

    def close(self) -> None:
        if self.transport is not None:
            self.transport.close()

    def abort(self) -> None:
        if self.transport is not None and not self.is_lost:
            break_off(self.transport)
