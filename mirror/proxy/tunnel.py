"""Tunnels: copy bytes between a client and a server in both directions.

Each side is read only as fast as the other side accepts data.  The end of one direction
(half-close) is passed on, and the other direction continues; a reset is passed on as a reset.
"""

import asyncio
import socket
from typing import Final

from mirror.http.body import break_off

#: The complete answer to a successful CONNECT; it must not have fields that announce a body.
ESTABLISHED: Final = b"HTTP/1.1 200 Connection established\r\n\r\n"
_HALF_SECONDS: Final = 60.0  # idle time after a half-close: the other side may be gone
_LAST_SECONDS: Final = 1.0  # idle time while the mirror stops


class Tunnel:
    """One tunnel between a client and a server."""

    def __init__(self, idle_seconds: float) -> None:
        """Close the tunnel after ``idle_seconds`` without data."""
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
        """Bytes sent to the client."""
        return self._server.count

    @property
    def to_server(self) -> int:
        """Bytes sent to the server."""
        return self._client.count

    async def run(self, client: asyncio.Transport, server: socket.socket, early: bytes) -> None:
        """Answer the CONNECT, and copy bytes until both directions have ended.

        ``early`` are bytes of the client that were read before.

        Raises:
            OSError: the connection to the server is already lost.
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
        """Close the tunnel after a second without data; the mirror stops."""
        self._be_idle_at_most(_LAST_SECONDS)

    def half_closed(self) -> None:
        """Handle the end of one direction: shorten the idle time."""
        self.moved()
        self._be_idle_at_most(_HALF_SECONDS)

    def _be_idle_at_most(self, seconds: float) -> None:
        self._idle_seconds = min(self._idle_seconds, seconds)
        self._watch()

    def moved(self) -> None:
        """Restart the idle time: data was received or accepted."""
        self._moved = self._loop.time()

    def ended(self, error: BaseException | None) -> None:
        """Handle the loss of one side: close the other after its pending data, or reset it."""
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
    """One side of a tunnel; its data is written to the ``other`` side."""

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
        return True  # keep the transport open for the other direction

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_lost = True
        self._tunnel.ended(exc)

    def close(self) -> None:
        if self.transport is not None:
            self.transport.close()

    def abort(self) -> None:
        if self.transport is not None and not self.is_lost:
            break_off(self.transport)
