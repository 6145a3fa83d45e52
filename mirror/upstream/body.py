"""Bodies that are read as a whole: one ``read`` of a stream returns only what has arrived."""

from collections.abc import Callable

import aiohttp


async def read_up_to(
    content: aiohttp.StreamReader, count: int, arrived: Callable[[int], None] = lambda _: None
) -> bytes:
    """The first ``count`` bytes of a body, fewer where it ends before them.

    ``arrived`` is told of every piece, in bytes.

    Raises:
        aiohttp.ClientError, OSError, RuntimeError: the connection broke or stalled.
    """
    body = bytearray()
    while len(body) < count and (piece := await content.read(count - len(body))):
        arrived(len(piece))
        body += piece
    return bytes(body)
