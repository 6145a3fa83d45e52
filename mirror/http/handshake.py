"""TLS handshakes with clients on open connections.

Independent of the protocol inside TLS.  Silent clients cost little: a connection gets its TLS
object with its first bytes, and the number of concurrent handshakes is limited.

Depends on private parts of asyncio's SSLProtocol, in the way of asyncio's ``start_tls``.
"""

import asyncio
import ssl
from asyncio.sslproto import SSLAgainErrors, SSLProtocol
from collections.abc import Callable
from typing import Any, Final

from mirror.http.turns import LineFullError, Turns

_MOST_EARLY: Final = 32 * 1024  # bytes; a client begins with one TLS record of at most 16 KiB
_FIRST_BYTES: Final = 4096  # usually the whole ClientHello
_AT_ONCE: Final = 64
_AT_ONCE_PER_CLIENT: Final = 16
_WAITING_PER_CLIENT: Final = 10_000  # ConnectionLimiter limits the connections of a client
_HANDSHAKE_SECONDS: Final = 10  # counted from the first bytes


class _Tls(SSLProtocol):
    """SSLProtocol for requests: a smaller read buffer than asyncio's 256 KiB, and fewer reads."""

    max_size = 32 * 1024

    def _do_read__copied(self: Any) -> None:
        """Read while there is something to read.

        asyncio reads until OpenSSL raises SSLWantReadError: 4 % of the CPU of a 64 KiB answer.
        """
        chunks: list[bytes] = []
        try:
            while self._incoming.pending or self._sslobj.pending():
                chunks.append(self._sslobj.read(self.max_size))
                if not chunks[-1]:  # close_notify
                    break
        except SSLAgainErrors:  # the last record is not complete
            pass
        if data := b"".join(chunks):
            self._app_protocol.data_received(data)
        if chunks and not chunks[-1]:
            self._call_eof_received()
            self._start_shutdown()


class _Silent(asyncio.BufferedProtocol):
    """Waits for a client's first bytes and reads at most ``_FIRST_BYTES`` of them."""

    def __init__(self) -> None:
        self.buffer = bytearray(_FIRST_BYTES)
        self.arrived: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._transport: asyncio.Transport | None = None

    def take(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        transport.set_protocol(self)
        transport.resume_reading()

    def get_buffer(self, sizehint: int) -> bytearray:  # noqa: ARG002  # asyncio's own
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        assert self._transport is not None, "take() sets the transport before reading starts"
        self._transport.pause_reading()
        if not self.arrived.done():
            self.arrived.set_result(nbytes)

    def eof_received(self) -> None:
        self.connection_lost(None)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # asyncio's own
        if not self.arrived.done():
            self.arrived.set_result(0)


class _Waiting(asyncio.Protocol):
    """Buffers the data behind the handshake until the inner protocol exists."""

    def __init__(self) -> None:
        self.data = b""
        self.lost = False

    def data_received(self, data: bytes) -> None:
        self.data += data

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # asyncio's own
        self.lost = True


class Handshakes:
    """Performs TLS handshakes with clients, a limited number at once."""

    def __init__(self, seconds: float) -> None:
        """Allow a client ``seconds`` for its first bytes and its handshake together."""
        self._seconds = seconds
        self._turns = Turns(_AT_ONCE, _AT_ONCE_PER_CLIENT, _WAITING_PER_CLIENT)

    async def speak_tls(
        self,
        transport: asyncio.Transport,
        early: bytes,
        context: ssl.SSLContext,
        client: str,
        inside: Callable[[], asyncio.Protocol],
    ) -> None:
        """Perform the handshake, then connect the protocol that ``inside`` makes.

        ``early`` are the client's bytes that were read before.

        Raises:
            OSError: the client closed the connection, was too slow, or does not speak TLS
                (``ssl.SSLError`` is an OSError).
        """
        if len(early) > _MOST_EARLY:
            raise ConnectionAbortedError("too much data before the handshake")
        waiting = _Waiting()
        try:
            async with asyncio.timeout(self._seconds):
                early = early or await _first_bytes(transport)
                async with self._turns.turn(client):
                    secure = await _shaken(transport, early, context, waiting)
        except LineFullError as error:
            raise ConnectionAbortedError("too many waiting handshakes of one client") from error
        if secure is None or secure.is_closing() or waiting.lost:
            raise ConnectionResetError("the client has gone")
        protocol = inside()
        secure.set_protocol(protocol)
        protocol.connection_made(secure)
        if waiting.data:
            protocol.data_received(waiting.data)


async def _first_bytes(transport: asyncio.Transport) -> bytes:
    silent = _Silent()
    silent.take(transport)
    count = await silent.arrived
    if not count:
        raise ConnectionResetError("the client has gone")
    return bytes(silent.buffer[:count])


async def _shaken(
    transport: asyncio.Transport, early: bytes, context: ssl.SSLContext, waiting: _Waiting
) -> asyncio.Transport | None:
    """Perform the handshake as asyncio's ``start_tls`` does, with bytes that were read before.

    Returns the transport inside TLS; None if the client has gone.
    """
    loop = asyncio.get_running_loop()
    shaken = loop.create_future()
    tls = _Tls(
        loop,
        waiting,
        context,
        shaken,
        server_side=True,
        call_connection_made=False,
        ssl_handshake_timeout=_HANDSHAKE_SECONDS,
    )
    transport.pause_reading()
    transport.set_protocol(tls)
    steps = [
        loop.call_soon(tls.connection_made, transport),
        loop.call_soon(_feed, transport, early),
        loop.call_soon(transport.resume_reading),
    ]
    try:
        await shaken
    except BaseException:
        transport.close()
        for step in steps:
            step.cancel()
        raise
    return tls._app_transport


def _feed(transport: asyncio.Transport, early: bytes) -> None:
    protocol = transport.get_protocol()
    if not isinstance(protocol, asyncio.BufferedProtocol):  # the client has gone
        return
    while early and not transport.is_closing():
        buffer = memoryview(protocol.get_buffer(len(early)))
        count = min(len(buffer), len(early))
        buffer[:count] = early[:count]
        protocol.buffer_updated(count)
        early = early[count:]
