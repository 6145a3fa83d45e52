"""Connections to the servers of one upstream: addresses, proxies, TLS, and how answers are read.

aiohttp's parser refuses headers that Go's net/http accepts, as most clients use it: the same
Content-Length twice, Content-Length beside ``chunked``, a field name with a space, bytes after the
end of the body.  The header is corrected before the parser sees it.  That rests on
``aiohttp.client_proto.ResponseHandler``, whose minor version is pinned;
``tests/upstream/test_sessions_framing.py`` has one case for each.
"""

import functools
import re
import socket
import ssl
import zlib
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.client_proto import ResponseHandler
from aiohttp.resolver import DefaultResolver
from yarl import URL

from mirror.upstream.addresses import PrivateAddressError, is_private
from mirror.upstream.errors import UnreachableError
from mirror.upstream.proxies import NO_PROXIES, Proxies, Proxy

_PROXY_LOGIN: Final = 407
_MAX_HEADER_BYTES: Final = 64 * 1024  # tokens and signed addresses exceed aiohttp's 8 KiB
_MAX_FIELDS: Final = 1024
#: Names with a space, unless the line continues the field before it (RFC 9112, 5.2).
_SPACED: Final = re.compile(rb"(?m)^[^\s:]+[ \t][^:\n]*:[^\n]*\n")
_LENGTH: Final = re.compile(rb"(?mi)^content-length:[ \t]*([0-9]+)[ \t]*\r?\n")
_CHUNKED: Final = re.compile(rb"(?mi)^transfer-encoding:[ \t]*chunked[ \t]*\r?$")
_END: Final = re.compile(rb"\r?\n\r?\n")
_INTERIM: Final = re.compile(rb"HTTP/1\.[01] 1\d\d")
_MAX_BYTES: Final = 256 * 1024  # beyond it the parser decides
_ZLIB_OR_GZIP: Final = zlib.MAX_WBITS + 32
#: Other codings that servers name, such as aws-chunked, leave the bytes as they are.
_COMPRESSED: Final = {"br", "compress", "deflate", "gzip", "x-gzip", "zstd"}


@dataclass(frozen=True, slots=True)
class TransportSettings:
    """How to reach upstream; times are in seconds.

    ``private_redirects``: a public registry may redirect to private addresses.
    ``http_redirects``: a server with https may redirect to one without.
    """

    connect_timeout: float = 10.0
    first_byte_timeout: float = 30.0
    idle_timeout: float = 60.0
    proxies: Proxies = NO_PROXIES
    private_redirects: bool = False
    http_redirects: bool = False
    ca_files: tuple[str, ...] = ()
    user_agent: str = "mirror"


class Sessions:
    """The connections to one upstream and the servers it redirects to, direct and by proxy."""

    def __init__(self, upstream: str, host: str, settings: TransportSettings) -> None:
        """``host`` is the host of the registry."""
        self._upstream = upstream
        self._settings = settings
        self._resolver = None if settings.private_redirects else GuardedResolver(host)
        self._direct: aiohttp.ClientSession | None = None
        self._proxied: aiohttp.ClientSession | None = None

    def open(self) -> None:
        """Make both sessions.

        Raises:
            OSError: a CA file cannot be used.
        """
        self._direct = self._opened(self._resolver)
        # A separate session: it resolves only the names of proxies, which may be private.
        self._proxied = self._opened(None)

    def _opened(self, resolver: AbstractResolver | None) -> aiohttp.ClientSession:
        settings = self._settings
        return aiohttp.ClientSession(
            auto_decompress=False,
            trust_env=False,  # aiohttp would send credentials from ~/.netrc
            cookie_jar=aiohttp.DummyCookieJar(),
            connector=forgiving(
                aiohttp.TCPConnector(limit=0, ssl=trusting(settings.ca_files), resolver=resolver)
            ),
            max_headers=_MAX_FIELDS,
            max_line_size=_MAX_HEADER_BYTES,
            max_field_size=_MAX_HEADER_BYTES,
            timeout=aiohttp.ClientTimeout(
                total=None,
                sock_connect=settings.connect_timeout,
                sock_read=settings.idle_timeout,
            ),
        )

    async def close(self) -> None:
        """Close all connections."""
        async with AsyncExitStack() as stack:  # closes the other one even if a close is cancelled
            for session in (self._direct, self._proxied):
                if session is not None:
                    stack.push_async_callback(session.close)

    def lookup_proxy(self, url: URL) -> Proxy | None:
        """Return the proxy for an address, None if the address is reached directly."""
        return self._settings.proxies.lookup(url.scheme, url.raw_host or "", url.port or 0)

    async def request(
        self, method: str, url: URL, proxy: Proxy | None, **options: Any
    ) -> aiohttp.ClientResponse:
        """Send one request; return the answer with its body unread.

        Raises:
            aiohttp.ClientError, OSError, ValueError: there is none.
            UnreachableError: the proxy wants a login.
        """
        session = self._direct if proxy is None else self._proxied
        assert session is not None, "a transport is entered before it is used"
        if self._resolver is not None and url.host is not None:
            self._resolver.check(url.host)
        response = await session.request(
            method,
            url,
            allow_redirects=False,
            proxy=None if proxy is None else proxy.url,
            **options,
        )
        if response.status == _PROXY_LOGIN and proxy is not None:
            response.close()
            raise UnreachableError(self._upstream, f"the proxy {proxy} wants user and password")
        return response


class GuardedResolver(AbstractResolver):
    """The system's resolver; it refuses private addresses for public registries."""

    def __init__(self, own: str, inner: AbstractResolver | None = None) -> None:
        """``own`` is the host of the registry."""
        self._own = own
        self._inner = inner if inner is not None else DefaultResolver()
        self._private = is_private(own)

    def check(self, host: str) -> None:
        """Check a host that is an address and is not resolved.

        Raises:
            PrivateAddressError: the address is private and that of the registry is not.
        """
        if is_private(host) and not self._private:
            raise PrivateAddressError(f"{host} is a private address")

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Return the addresses of a name.

        Raises:
            OSError: the name has no address.
            PrivateAddressError: all its addresses are private and that of the registry is not.
        """
        found = await self._inner.resolve(host, port, family)
        if host == self._own:
            self._private = any(is_private(result["host"]) for result in found)
        if host == self._own or self._private:
            return found
        public = [result for result in found if not is_private(result["host"])]
        if found and not public:
            raise PrivateAddressError(f"{host} has a private address")
        return public

    async def close(self) -> None:
        """Close the system's resolver."""
        await self._inner.close()


def trusting(ca_files: tuple[str, ...]) -> ssl.SSLContext:
    """Return a TLS context that trusts the CAs of the system and those in the files.

    A changed file is read again.

    Raises:
        OSError: a file cannot be read or contains no certificate (``ssl.SSLError`` is an OSError).
    """
    return _tls(ca_files, tuple(Path(file).stat().st_mtime_ns for file in ca_files))


@functools.cache  # a context costs 20 ms, and most upstreams use the same one
def _tls(ca_files: tuple[str, ...], _changed: tuple[int, ...]) -> ssl.SSLContext:
    context = ssl.create_default_context()
    for file in ca_files:
        context.load_verify_locations(cafile=file)
    return context


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
