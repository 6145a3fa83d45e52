"""TLS with clients, over connections that are there already.

Must not know what is said inside.  Clients that say nothing cost little: a connection has no TLS
before its first bytes have come, and only so many handshakes are under way at once.

Rests on private parts of asyncio's SSLProtocol, as its ``start_tls`` uses them.
"""

import asyncio
import ssl
from asyncio.sslproto import SSLProtocol
from collections.abc import Callable
from typing import Final

from mirror.http.turns import LineFullError, Turns

_MOST_EARLY: Final = 32 * 1024  # bytes; what a client says first is one record of at most 16 KiB
_FIRST_BYTES: Final = 4096  # as a rule all that a client says before it is answered
_AT_ONCE: Final = 64
_AT_ONCE_PER_CLIENT: Final = 16
_WAITING_PER_CLIENT: Final = 10_000  # the connections of a client are limited elsewhere
_HANDSHAKE_SECONDS: Final = 10  # from the first bytes on


class _Tls(SSLProtocol):
    """asyncio's, whose buffer of 256 KiB is for downloads; here clients send requests."""

    max_size = 32 * 1024


class _Silent(asyncio.BufferedProtocol):
    """Waits for the first bytes, and takes few of them."""

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
        assert self._transport is not None, "it reads from one"
        self._transport.pause_reading()
        if not self.arrived.done():
            self.arrived.set_result(nbytes)

    def eof_received(self) -> None:
        self.connection_lost(None)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # asyncio's own
        if not self.arrived.done():
            self.arrived.set_result(0)


class _Waiting(asyncio.Protocol):
    """Holds what comes right behind the handshake, until somebody is there to read it."""

    def __init__(self) -> None:
        self.data = b""
        self.lost = False

    def data_received(self, data: bytes) -> None:
        self.data += data

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # asyncio's own
        self.lost = True


class Handshakes:
    """Speaks TLS with clients, with so many at once."""

    def __init__(self, seconds: float) -> None:
        """Give a client so many seconds from its CONNECT on."""
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
        """Shake hands, then let a protocol made by ``inside`` talk; ``early`` was read already.

        Raises:
            OSError: the client broke it off, was too slow, or speaks no TLS (``ssl.SSLError`` is
                one).
        """
        if len(early) > _MOST_EARLY:
            raise ConnectionAbortedError("too much came before the handshake")
        waiting = _Waiting()
        try:
            async with asyncio.timeout(self._seconds):
                early = early or await _first_bytes(transport)
                async with self._turns.turn(client):
                    secure = await _shaken(transport, early, context, waiting)
        except LineFullError as error:
            raise ConnectionAbortedError("too many handshakes of one client wait") from error
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
    """The transport inside TLS, as asyncio's ``start_tls`` has it; None if the client has gone."""
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
