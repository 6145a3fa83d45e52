"""Reads whole bodies: one ``read`` of a stream returns only the bytes that have arrived."""

import zlib
from collections.abc import Callable
from typing import Final

import aiohttp

_ZLIB_OR_GZIP: Final = zlib.MAX_WBITS + 32
#: Other codings that servers name, such as aws-chunked, leave the bytes as they are.
_COMPRESSED: Final = {"br", "compress", "deflate", "gzip", "x-gzip", "zstd"}


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


def uncompressed(body: bytes, limit: int) -> bytes:
    """Undo a Content-Encoding: some servers compress although ``identity`` was asked for.

    Returns:
        at most ``limit`` bytes; the body itself if it is not gzip or zlib (a wrong field).
    """
    try:
        return zlib.decompressobj(_ZLIB_OR_GZIP).decompress(body, limit)
    except zlib.error:
        return body


def is_compressed(response: aiohttp.ClientResponse) -> bool:
    """Whether the body has a Content-Encoding, so that its length is not that of the content."""
    codings = response.headers.get("Content-Encoding", "").lower().split(",")
    return any(each.strip() in _COMPRESSED for each in codings)
