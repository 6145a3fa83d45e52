"""Bodies on their way to a client: from a stored file, a growing one, or straight through."""

import asyncio
import os
import socket
import struct
from contextlib import aclosing
from typing import Final

from aiohttp import web

from mirror.pull.content import Content, FilePiece, Piece
from mirror.pull.errors import BrokenOffError
from mirror.web.exchange import EXCHANGE

_COPY_BYTES: Final = 256 * 1024
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)  # struct linger {l_onoff, l_linger}


async def stream(
    request: web.BaseRequest,
    response: web.StreamResponse,
    content: Content,
    span: tuple[int, int | None],
) -> None:
    """Send a stretch of a body after the response's headers.

    What breaks off on the way ends in a reset connection: a clean end would pass for the whole
    with clients that do not count.
    """
    exchange = request[EXCHANGE]
    await response.prepare(request)
    exchange.answered()
    try:
        async with aclosing(content.pieces(*span)) as pieces:
            async for piece in pieces:
                await _send(request, response, piece)
                exchange.sent_bytes += piece.count if isinstance(piece, FilePiece) else len(piece)
        await response.write_eof()
    except (BrokenOffError, OSError) as error:
        exchange.detail = str(error)
        exchange.whole = False
        reset(request)


async def _send(request: web.BaseRequest, response: web.StreamResponse, piece: Piece) -> None:
    if isinstance(piece, bytes):
        await response.write(piece)
    elif response.chunked:
        await _copy(response, piece)
    else:
        await _sendfile(request, piece)


async def _sendfile(request: web.BaseRequest, piece: FilePiece) -> None:
    transport = request.transport
    if transport is None:
        raise ConnectionResetError("the client has gone")
    loop = asyncio.get_running_loop()
    with os.fdopen(os.dup(piece.fd), "rb") as file:
        await loop.sendfile(transport, file, piece.offset, piece.count)


async def _copy(response: web.StreamResponse, piece: FilePiece) -> None:
    """For bodies of unknown length, whose chunk headers sendfile knows nothing of."""
    loop = asyncio.get_running_loop()
    position, stop = piece.offset, piece.offset + piece.count
    while position < stop:
        count = min(_COPY_BYTES, stop - position)
        read = await loop.run_in_executor(None, os.pread, piece.fd, count, position)
        await response.write(read)
        position += len(read)


def reset(request: web.BaseRequest) -> None:
    """Break the connection so that no client takes what it has for the whole."""
    transport = request.transport
    if transport is None:
        return
    connection = transport.get_extra_info("socket")
    if connection is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    transport.abort()
