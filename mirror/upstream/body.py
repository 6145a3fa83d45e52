"""Reads whole bodies: one ``read`` of a stream returns only the bytes that have arrived."""

from collections.abc import Callable

import aiohttp


async def read_up_to(
    content: aiohttp.StreamReader, count: int, arrived: Callable[[int], None] = lambda _: None
) -> bytes:
    """Return the first ``count`` bytes of a body, fewer if the body is shorter.

    ``arrived`` is called with the size of every piece in bytes.

    Raises:
        aiohttp.ClientError, OSError, RuntimeError: the connection broke or stalled.
    """
    body = bytearray()
    while len(body) < count and (piece := await content.read(count - len(body))):
        arrived(len(piece))
        body += piece
    return bytes(body)
