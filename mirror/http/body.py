"""Response bodies: from a stored file, from a file that is still being filled, or from upstream."""

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Final

from aiohttp import HttpVersion11, hdrs, web

from mirror.descriptor import FileRange
from mirror.http.exchange import EXCHANGE, Exchange
from mirror.http.sendfile import Sender
from mirror.pull.body import Piece
from mirror.pull.outcome import BrokenOffError
from mirror.shares import SMALL_BYTES

_COPY_BYTES: Final = 256 * 1024
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)  # struct linger {l_onoff, l_linger}


def delimit(request: web.BaseRequest, response: web.StreamResponse, size: int | None) -> None:
    """Mark the end of a body of ``size`` bytes, None if the size is unknown.

    HTTP/1.0, which nginx speaks by default, knows no chunks: the end of the connection is the end.
    """
    response.content_length = size
    if size is None and request.version >= HttpVersion11:
        response.enable_chunked_encoding()
    elif size is None:
        response.force_close()


async def stream(
    request: web.BaseRequest,
    response: web.StreamResponse,
    body: AsyncGenerator[Piece, None],
    sender: Sender,
) -> None:
    """Send the response's headers, then the body, unless the request is a HEAD.

    If the body breaks off, the connection is reset: clients that do not check the length would
    take a clean end for a complete body.
    """
    exchange = request[EXCHANGE]
    await response.prepare(request)
    exchange.answered()
    if request.method == hdrs.METH_HEAD:
        await response.write_eof()
        return
    try:
        async with aclosing(body) as pieces:
            async for piece in pieces:
                await _send(request, response, piece, sender)
        await response.write_eof()
    except (BrokenOffError, OSError) as error:
        exchange.detail = str(error)
        exchange.whole = False
        exchange.broken_off = isinstance(error, BrokenOffError)
        reset(request)


async def answer_with(
    request: web.BaseRequest, headers: Mapping[str, str], body: bytes, sender: Sender
) -> web.StreamResponse:
    """Answer with a body that is in memory; a large body is sent in slices.

    Slices keep the transport from buffering a second copy of the body.  The caller must hold the
    body's share of memory until this returns.
    """
    if len(body) <= SMALL_BYTES:
        request[EXCHANGE].sent_bytes = len(body)
        return web.Response(body=body, headers=headers)
    response = web.StreamResponse(headers=headers)
    response.content_length = len(body)
    await stream(request, response, _slices(body), sender)
    return response


async def _slices(body: bytes) -> AsyncGenerator[Piece, None]:
    for start in range(0, len(body), SMALL_BYTES):
        yield body[start : start + SMALL_BYTES]


async def _send(
    request: web.BaseRequest, response: web.StreamResponse, piece: Piece, sender: Sender
) -> None:
    exchange = request[EXCHANGE]
    transport = request.transport
    if transport is None:
        raise ConnectionResetError("the client has gone")
    if isinstance(piece, bytes):
        async with sender.patience():
            await response.write(piece)
        exchange.sent_bytes += len(piece)
    elif response.chunked or not sender.can_send(transport):
        await _copy(response, piece, exchange, sender)
    else:
        await sender.send(transport, piece, exchange.more)


async def _copy(
    response: web.StreamResponse, piece: FileRange, exchange: Exchange, sender: Sender
) -> None:
    """Send a piece without sendfile: for TLS, and for chunked bodies, which need chunk headers."""
    position, stop = piece.offset, piece.offset + piece.length
    while position < stop:
        count = min(_COPY_BYTES, stop - position)
        read = await sender.read(piece, position, count)
        async with sender.patience():
            await response.write(read)
        position += len(read)
        exchange.sent_bytes += len(read)


def reset(request: web.BaseRequest) -> None:
    """Reset a request's connection, so that the client sees that the body is incomplete."""
    if request.transport is not None:
        break_off(request.transport)


def break_off(transport: asyncio.BaseTransport) -> None:
    """End a connection with a TCP reset; data that is not sent yet is dropped."""
    connection = transport.get_extra_info("socket")
    if connection is not None:
        with contextlib.suppress(OSError):  # the connection is already closed
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    if isinstance(transport, asyncio.Transport):
        transport.abort()
