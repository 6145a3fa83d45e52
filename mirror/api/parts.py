"""Range requests for blobs: the requested ranges, and multipart bodies (RFC 9110, 14)."""

import re
import secrets
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Final

from aiohttp import web

from mirror.oci.byterange import ByteRange, RangeNotSatisfiable, parse_ranges
from mirror.oci.digest import Digest
from mirror.oci.errors import ErrorCode, OciError
from mirror.pull.body import Content, Piece

_NAMES: Final = {
    "buildah": "Buildah",
    "buildkit": "BuildKit",
    "containers": "Podman",  # sends its library's name; other users of it send their own names
    "cri-o": "CRI-O",
    "docker": "Docker",
    "helm": "Helm",
    "libpod": "Podman",
    "oras": "ORAS",
    "podman": "Podman",
    "skopeo": "Skopeo",
    "trivy": "Trivy",
}
_PRODUCT: Final = re.compile(r"[A-Za-z][\w.+-]{0,23}", re.ASCII)  # RFC 9110, 10.1.5, but bounded
_VERSION: Final = re.compile(r"/v?(\d{1,6}(?:\.\d{1,6})?)", re.ASCII)


def wanted_ranges(request: web.BaseRequest, digest: Digest, size: int) -> tuple[ByteRange, ...]:
    """Return the ranges to send of a blob of ``size`` bytes; an empty tuple means the whole blob.

    Raises:
        OciError: no requested range is inside the blob (416).
    """
    condition = request.headers.get("If-Range")
    if condition is not None and condition != f'"{digest}"':
        return ()
    try:
        return parse_ranges(request.headers.get("Range"), size)
    except RangeNotSatisfiable as error:
        raise OciError(
            ErrorCode.RANGE_INVALID,
            str(error),
            status=416,
            headers={"Content-Range": f"bytes */{size}"},
        ) from error


class Parts:
    """A multipart body: several ranges of a blob of ``size`` bytes, each with header fields."""

    def __init__(self, ranges: Sequence[ByteRange], size: int) -> None:
        boundary = secrets.token_hex(16)
        self.content_type = f"multipart/byteranges; boundary={boundary}"
        self._ranges = ranges
        self._heads = [
            f"\r\n--{boundary}\r\nContent-Type: application/octet-stream\r\n"
            f"Content-Range: {wanted.content_range(size)}\r\n\r\n".encode()
            for wanted in ranges
        ]
        self._tail = f"\r\n--{boundary}--\r\n".encode()
        headers = sum(map(len, self._heads)) + len(self._tail)
        self.length = headers + sum(wanted.length for wanted in ranges)

    async def pieces(self, content: Content) -> AsyncGenerator[Piece, None]:
        """Yield the body as the blob's bytes become available.

        Raises:
            BrokenOffError: see :meth:`Content.pieces`.
        """
        for head, wanted in zip(self._heads, self._ranges, strict=True):
            yield head
            async with aclosing(content.pieces(wanted.start, wanted.stop)) as pieces:
                async for piece in pieces:
                    yield piece
        yield self._tail


def client_type(agent: str) -> str:
    """Return the program's usual name, else the first product in ``agent``, else ``unknown``."""
    product = _PRODUCT.match(agent)
    if product is None:
        return "unknown"
    return _NAMES.get(product[0].lower(), product[0])


def client_version(agent: str) -> str:
    """Return the program's usual name and the first two parts of its version: ``Docker 28.0``."""
    product = _PRODUCT.match(agent)
    version = None if product is None else _VERSION.match(agent, product.end())
    if version is None or agent.startswith("containers/"):  # the version of Podman's library
        return client_type(agent)
    return f"{client_type(agent)} {version[1]}"
