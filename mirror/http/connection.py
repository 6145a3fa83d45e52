"""aiohttp's RequestHandler with connection limits and cached responses.

aiohttp's parser reads every byte first.  A request with a cached response is removed from the
parser's result before RequestHandler sees it, so this module never decides where a request ends.

Depends on private parts of aiohttp's RequestHandler: ``tests/http/test_response_cache.py`` lists
them, and pyproject.toml pins the minor version.
"""

import asyncio
import os
import socket
import time
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, cast

from aiohttp import StreamReader, web
from aiohttp.helpers import rfc822_formatted_time
from aiohttp.http_parser import HttpParser, RawRequestMessage
from aiohttp.streams import EMPTY_PAYLOAD
from aiohttp.web_protocol import RequestHandler

from mirror.http.admission import ConnectionLimiter
from mirror.http.forwarded import plain_address
from mirror.http.response_cache import CachedResponse, HotKey, ResponseCache
from mirror.http.responses import error_response, plain_response
from mirror.http.server_options import ConnectionContext, ServerOptions
from mirror.oci.errors import ErrorCode, OciError

if TYPE_CHECKING:
    from mirror.http.server import Server

_AT_ONCE_SECONDS: Final = 0.001
#: asyncio reads 256 KiB at once, so that a thousand clients that send bodies take 300 MiB.
_READ_BYTES: Final = 32 * 1024
_MORE: Final = getattr(socket, "MSG_MORE", 0)  # Linux: head and body in one segment
#: Up to this size, one write of head and body costs less CPU than sendfile.
_IN_MEMORY_BYTES: Final = 64 * 1024

_Messages = Sequence[tuple[RawRequestMessage, StreamReader]]


class _Parser:
    """aiohttp's parser; requests that ``repeated`` has answered are removed from its result.

    A chunked request closes its connection: aiohttp's C parser puts the last field of the trailer
    before the fields of the next request, which may be another client's if a proxy sends both.
    """

    def __init__(
        self, parser: HttpParser[Any], repeated: Callable[[RawRequestMessage, StreamReader], bool]
    ) -> None:
        self._parser = parser
        self._repeated = repeated

    def feed_data(self, data: bytes) -> tuple[_Messages, bool, bytes]:
        messages, upgraded, tail = self._parser.feed_data(data)
        if len(messages) == 1 and not upgraded and self._repeated(*messages[0]):
            self._parser.message_consumed()
            return (), upgraded, tail
        if any(message.chunked for message, _ in messages):
            messages = [(_closing(message), payload) for message, payload in messages]
        return messages, upgraded, tail

    def __getattr__(self, name: str) -> Any:
        return getattr(self._parser, name)


def _closing(message: RawRequestMessage) -> RawRequestMessage:
    return message._replace(should_close=True) if message.chunked else message


class Connection(RequestHandler):
    """A connection that sends cached responses.

    Bytes that are not an HTTP request are answered with the spec's error JSON too.
    """

    __slots__ = (
        "_counted",
        "_limiter",
        "_options",
        "_raw_socket",
        "_server",
        "_table",
        "_winding_down",
        "client",
        "entry",
        "proxied",
        "refusal",
        "when_ended",
    )

    def __init__(
        self,
        server: "Server",
        limiter: ConnectionLimiter,
        entry: ConnectionContext,
        **settings: Any,
    ) -> None:
        super().__init__(server, **settings)
        assert self._parser is not None, "aiohttp drops the parser when the connection is lost"
        self._parser = cast("HttpParser[Any]", _Parser(self._parser, self._repeated))
        self._server = server
        self._limiter = limiter
        self._options = server.options
        self._table: ResponseCache | None = None
        # The address the connection counts for.  Empty for a trusted proxy: it has many clients.
        self._counted = ""
        self._raw_socket: socket.socket | None = None
        self._winding_down: Callable[[], None] | None = None
        self.entry = entry
        self.when_ended: Callable[[], None] | None = None
        self.client = ""  # the peer's address: a client or a proxy
        self.proxied = False  # the peer is a trusted proxy, which names the client
        self.refusal = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        cast("Any", transport).max_size = _READ_BYTES
        if self.entry.upstream:  # the proxy port has counted and admitted the outer connection
            self.client = self.entry.client
            self._table = self._allowed_table()
            return
        peer = transport.get_extra_info("peername")
        self.client = plain_address(peer[0]) if isinstance(peer, tuple) else ""
        self.proxied = self._options.proxies.trusts(self.client)
        self._counted = "" if self.proxied else self.client
        self.refusal = self._limiter.enter(self._counted)
        self._table = self._allowed_table()
        if transport.get_extra_info("sslcontext") is None:
            self._raw_socket = getattr(transport.get_extra_info("socket"), "_sock", None)
        # A connection that the loop accepted just before the end: nothing else would close it.
        unwanted = self._limiter.overrun or self._server.ended
        if unwanted and isinstance(transport, asyncio.Transport):
            transport.abort()

    def connection_lost(self, exc: BaseException | None) -> None:
        if not self.entry.upstream:
            self._limiter.leave(self._counted)
        self._raw_socket = None
        super().connection_lost(exc)
        if self.when_ended is not None:
            self.when_ended()

    def inside(self, entry: ConnectionContext) -> "Connection":
        """Return the handler of a TLS connection inside this one (proxy mode)."""
        return self._server.connection(entry)

    def detach_transport(
        self, wind_down: Callable[[], None] | None = None
    ) -> tuple[asyncio.Transport, bytes]:
        """Hand over the transport and the bytes that followed the request.

        Reading is paused; the new owner resumes it.  ``wind_down`` is called when the mirror
        stops.
        """
        assert self.transport is not None, "a request is being answered on this transport"
        early, self._message_tail = self._message_tail, b""
        self._winding_down = wind_down
        self.transport.pause_reading()
        return self.transport, early

    def let_go(self) -> None:
        """Close this handler after the detached transport has ended.

        asyncio reports the loss to the transport's new owner, not to this handler.
        """
        self._winding_down = None
        self.force_close()
        self._loop.call_soon(self._forget)

    def _forget(self) -> None:
        if self._manager is not None:
            self.connection_lost(None)

    async def shutdown(self, timeout: float | None = 15.0) -> None:  # noqa: ASYNC109  # aiohttp's
        if self._winding_down is not None:
            self._winding_down()
        # aiohttp would wait twice as long for an answer that does not end, and for ever if 0.
        try:
            async with asyncio.timeout(timeout):
                await super().shutdown(None)
        except TimeoutError:
            await super().shutdown(_AT_ONCE_SECONDS)

    def apply_options(self, options: ServerOptions) -> None:
        """Use ``options`` from the next request on."""
        if options is self._options:
            return
        self._options = options
        if not self.entry.upstream:  # else the proxy port has determined the client
            self.proxied = options.proxies.trusts(self.client)
        self._table = self._allowed_table()

    def _allowed_table(self) -> ResponseCache | None:
        """The response cache if every request of this connection is admitted, else None."""
        if self.refusal or self.entry.proxy:
            return None
        # Requests inside a proxied connection are not checked: the proxy port admitted it.
        return self._options.table if self.entry.upstream or self._is_open() else None

    def _is_open(self) -> bool:
        # Behind a proxy each cached response belongs to one client, which was admitted before.
        return (
            self._options.admission.users is None
            if self.proxied
            else self._options.admission.is_open_to(self.client)
        )

    def hot_key(self, message: RawRequestMessage, payload: StreamReader) -> HotKey | None:
        """Return the cache key of a request; None if it has a body, an upgrade or a close."""
        if payload is not EMPTY_PAYLOAD or message.upgrade or message.should_close:
            return None
        return HotKey(
            self.entry.upstream,
            self.proxied,
            message.method,
            message.path,
            message.version,
            message.raw_headers,
        )

    def repeats_from_memory(self, size: int) -> bool:
        """Whether to repeat a body of ``size`` bytes from memory: always with TLS."""
        return self._raw_socket is None or size <= _IN_MEMORY_BYTES

    def data_received(self, data: bytes) -> None:
        if self._server.options is not self._options:
            self.apply_options(self._server.options)
        super().data_received(data)

    def _idle_transport(self) -> asyncio.Transport | None:
        """The transport if every earlier answer is completely sent, else None."""
        transport = self.transport
        if self._waiter is None or self._waiter.done() or transport is None:
            return None
        busy = transport.is_closing() or transport.get_write_buffer_size()
        return None if busy else transport

    def _repeated(self, message: RawRequestMessage, payload: StreamReader) -> bool:
        """Send the cached response, if there is one and no earlier answer is pending."""
        started = time.monotonic()
        transport = self._idle_transport()
        if self._table is None or transport is None:
            return False
        key = self.hot_key(message, payload)
        answer = None if key is None else self._table.get(key, started)
        if answer is None:
            return False
        if answer.file is None:
            date = rfc822_formatted_time().encode("ascii")
            transport.write(b"".join((answer.first, date, answer.rest, answer.body)))
        elif not self._sent_file(transport, answer, answer.file):
            return False
        ended = time.monotonic()
        self._next_keepalive_close_time = ended + self._keepalive_timeout
        answer.ended(self.client, ended - started)
        return True

    def _sent_file(self, transport: asyncio.Transport, answer: CachedResponse, file: int) -> bool:
        """Send head and file at once; the transport buffers what the socket does not accept.

        False if nothing was sent, so that the ordinary handler has to answer.
        """
        if self._raw_socket is None:  # it was stored for a connection without TLS
            return False
        date = rfc822_formatted_time().encode("ascii")
        head = b"".join((answer.first, date, answer.rest))
        try:
            sent = self._raw_socket.send(head, _MORE)
        except BlockingIOError:
            return False
        except OSError:  # the client has gone
            transport.abort()
            return True
        if sent < len(head):
            transport.write(head[sent:] + os.pread(file, answer.size, 0))
            return True
        try:
            sent = os.sendfile(self._raw_socket.fileno(), file, 0, answer.size)
        except BlockingIOError:
            sent = 0
        except OSError:
            transport.abort()
            return True
        if sent < answer.size:
            transport.write(os.pread(file, answer.size - sent, sent))
        return True

    def log_exception(self, *args: Any, **kw: Any) -> None:
        # The request was answered before its body ended: an error in the rest is the client's.
        if not isinstance(kw.get("exc_info"), web.RequestPayloadError):
            super().log_exception(*args, **kw)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if request.writer.output_size > 0:
            raise ConnectionError("the answer is already partly sent")
        phrase = HTTPStatus(status).phrase.lower()
        what = f"the mirror cannot read this HTTP request ({phrase})"
        if self.entry.proxy:
            return plain_response(status, what)
        error = OciError(ErrorCode.UNSUPPORTED, what, status=status)
        response = error_response(error)
        response.force_close()
        return response
