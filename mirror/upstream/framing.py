"""Reads the header of a response as forgivingly as Go's net/http, which most clients use.

aiohttp's parser refuses what Go accepts: the same Content-Length twice, Content-Length beside
``chunked``, a field name with a space, bytes after the end of the body.  This module corrects the
header before the parser sees it.  It rests on ``aiohttp.client_proto.ResponseHandler``, whose minor
version is pinned; ``tests/upstream/test_framing.py`` has one case for each.
"""

import functools
import re
from typing import Any, Final

import aiohttp
from aiohttp.client_proto import ResponseHandler

#: Names with a space, unless the line continues the field before it (RFC 9112, 5.2).
_SPACED: Final = re.compile(rb"(?m)^[^\s:]+[ \t][^:\n]*:[^\n]*\n")
_LENGTH: Final = re.compile(rb"(?mi)^content-length:[ \t]*([0-9]+)[ \t]*\r?\n")
_CHUNKED: Final = re.compile(rb"(?mi)^transfer-encoding:[ \t]*chunked[ \t]*\r?$")
_END: Final = re.compile(rb"\r?\n\r?\n")
_INTERIM: Final = re.compile(rb"HTTP/1\.[01] 1\d\d")
_MAX_BYTES: Final = 256 * 1024  # beyond it the parser decides


class ForgivingHandler(ResponseHandler):
    """A connection to a server whose headers are corrected."""

    _header: bytes | None = None
    """The header so far; None while the body is read."""

    def set_response_params(self, **options: Any) -> None:
        """Expect a header."""
        self._header = b""
        super().set_response_params(**options)

    def data_received(self, data: bytes) -> None:
        """Pass on the header once it is whole, and the bytes after it separately."""
        if self._header is None or not data:  # no data: the parser goes on with what it has
            super().data_received(data)
            return
        while self._header is not None and data:
            header = self._header + data
            end = _END.search(header, max(0, len(self._header) - 3))
            if end is None and len(header) < _MAX_BYTES:
                self._header = header
                return
            stop = len(header) if end is None else end.end()
            data = header[stop:]
            self._header = b"" if _INTERIM.match(header) else None
            super().data_received(corrected(header[:stop]))
        if data:
            super().data_received(data)


def forgiving(connector: aiohttp.TCPConnector) -> aiohttp.TCPConnector:
    """Make a connector use :class:`ForgivingHandler`."""
    handler: type[ResponseHandler] = ForgivingHandler
    connector._factory = functools.partial(handler, loop=connector._loop)  # noqa: SLF001
    return connector


def corrected(header: bytes) -> bytes:
    """Return a header that the parser accepts, with the meaning that it has for Go."""
    status, newline, fields = header.partition(b"\n")
    fields = _SPACED.sub(b"", fields)
    lengths = _LENGTH.findall(fields)
    if lengths and _CHUNKED.search(fields):
        fields = _LENGTH.sub(b"", fields)
    elif len(lengths) > 1 and len(set(lengths)) == 1:
        fields = _LENGTH.sub(b"", fields, count=len(lengths) - 1)
    return status + newline + fields
