"""TLS over a connection that a client opened to somebody else, spoken here.

Must not know what is said inside.
"""

import asyncio
import ssl


class _Waiting(asyncio.Protocol):
    """Holds what comes right behind the handshake, until somebody is there to read it."""

    def __init__(self) -> None:
        self.data = b""
        self.lost = False

    def data_received(self, data: bytes) -> None:
        self.data += data

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # asyncio's own
        self.lost = True


async def speak_tls(
    transport: asyncio.Transport,
    early: bytes,
    context: ssl.SSLContext,
    inside: asyncio.Protocol,
    seconds: float,
) -> None:
    """Shake hands within ``seconds``, then let ``inside`` talk; ``early`` was read already.

    Raises:
        OSError: the client broke it off, was too slow, or speaks no TLS (``ssl.SSLError`` is one).
    """
    loop = asyncio.get_running_loop()
    waiting = _Waiting()
    starting = loop.create_task(
        loop.start_tls(transport, waiting, context, server_side=True, ssl_handshake_timeout=seconds)
    )
    if early:
        # After the first step of start_tls, and after what that leaves for the next turn.
        loop.call_soon(loop.call_soon, _feed, transport, early)
    secure = await starting
    if secure is None or secure.is_closing() or waiting.lost:
        raise ConnectionResetError("the client has gone")
    secure.set_protocol(inside)
    inside.connection_made(secure)
    if waiting.data:
        inside.data_received(waiting.data)


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
