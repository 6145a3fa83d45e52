"""One connection: aiohttp's, which counts itself and repeats what was answered before.

aiohttp's parser reads every byte first.  A request that is answered at once is taken out of what
the parser returns, before RequestHandler sees it; so nothing here has to know where one ends.

Rests on private parts of aiohttp's RequestHandler; ``tests/web/test_hot.py`` says
which, and pyproject.toml pins the minor version.
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

from mirror.http.connection_context import ConnectionContext
from mirror.http.connection_limiter import ConnectionLimiter
from mirror.http.forwarded import plain_address
from mirror.http.response_cache import CachedResponse, HotKey, ResponseCache
from mirror.http.responses import error_response, plain_response
from mirror.http.server_options import ServerOptions
from mirror.oci.errors import ErrorCode, OciError

if TYPE_CHECKING:
    from mirror.http.server import Server

_MORE: Final = getattr(socket, "MSG_MORE", 0)  # Linux: head and body in one segment

_Messages = Sequence[tuple[RawRequestMessage, StreamReader]]


class _Parser:
    """aiohttp's parser, without the requests that ``repeated`` has answered already.

    A chunked request is the last one of its connection: aiohttp's C parser puts the last field of
    its trailer before the fields of the next request, which may be another client's if a proxy
    sends both.
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
    """Repeats hot answers, and answers what is no HTTP with the spec's JSON too."""

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
        assert self._parser is not None, "there is no connection yet that could be lost"
        self._parser = cast("HttpParser[Any]", _Parser(self._parser, self._repeated))
        self._server = server
        self._limiter = limiter
        self._options = server.options
        self._table: ResponseCache | None = None  # of answers that need no handler
        self._counted = ""  # whose it is; empty for a proxy's, which are those of all its clients
        self._raw_socket: socket.socket | None = None
        self._winding_down: Callable[[], None] | None = None
        self.entry = entry
        self.when_ended: Callable[[], None] | None = None
        self.client = ""  # or a proxy
        self.proxied = False  # a trusted proxy says who asks
        self.refusal = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if self.entry.upstream:  # counted and let in already, by the proxy's port
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
        if self._limiter.overrun and isinstance(transport, asyncio.Transport):
            transport.abort()

    def connection_lost(self, exc: BaseException | None) -> None:
        if not self.entry.upstream:
            self._limiter.leave(self._counted)
        self._raw_socket = None
        super().connection_lost(exc)
        if self.when_ended is not None:
            self.when_ended()

    def inside(self, entry: ConnectionContext) -> "Connection":
        """The handler of a connection that is made inside this one."""
        return self._server.connection(entry)

    def detach_transport(
        self, wind_down: Callable[[], None] | None = None
    ) -> tuple[asyncio.Transport, bytes]:
        """Leave the transport to somebody else, with what came right behind the request.

        It is not read from until they say so; ``wind_down`` is called when the mirror stops.
        """
        assert self.transport is not None, "there is a request to be answered"
        early, self._message_tail = self._message_tail, b""
        self._winding_down = wind_down
        self.transport.pause_reading()
        return self.transport, early

    def let_go(self) -> None:
        """What was given away is over: nobody else will say that the connection is lost."""
        self._winding_down = None
        self.force_close()
        self._loop.call_soon(self._forget)

    def _forget(self) -> None:
        if self._manager is not None:
            self.connection_lost(None)

    async def shutdown(self, timeout: float | None = 15.0) -> None:  # noqa: ASYNC109  # aiohttp's
        if self._winding_down is not None:
            self._winding_down()
        await super().shutdown(timeout)

    def apply_options(self, options: ServerOptions) -> None:
        """Be treated by other rules from the next request on, if these are others."""
        if options is self._options:
            return
        self._options = options
        if not self.entry.upstream:  # else who asks was found out by the proxy's port
            self.proxied = options.proxies.trusts(self.client)
        self._table = self._allowed_table()

    def _allowed_table(self) -> ResponseCache | None:
        """The table, where ``Server`` lets every request of this connection in."""
        if self.refusal or self.entry.proxy:
            return None
        # Inside the proxy no request is checked: its port let the connection in.
        return self._options.table if self.entry.upstream or self._is_open() else None

    def _is_open(self) -> bool:
        # Behind a proxy each answer is kept for the client it was for, who had been let in.
        return (
            self._options.admission.users is None
            if self.proxied
            else self._options.admission.is_open_to(self.client)
        )

    def hot_key(self, message: RawRequestMessage, payload: StreamReader) -> HotKey | None:
        """The key of a request's answer; None for one whose answer does not end with its head."""
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

    def data_received(self, data: bytes) -> None:
        if self._server.options is not self._options:
            self.apply_options(self._server.options)
        super().data_received(data)

    def _idle_transport(self) -> asyncio.Transport | None:
        """The transport, where all earlier requests are answered and their answers are sent."""
        transport = self.transport
        if self._waiter is None or self._waiter.done() or transport is None:
            return None
        busy = transport.is_closing() or transport.get_write_buffer_size()
        return None if busy else transport

    def _repeated(self, message: RawRequestMessage, payload: StreamReader) -> bool:
        """Answer a request as before, if there is such an answer and none is due before it."""
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
        self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout
        answer.ended(self.client, ended - started)
        return True

    def _sent_file(self, transport: asyncio.Transport, answer: CachedResponse, file: int) -> bool:
        """Send head and body at once; what the socket does not take waits in the transport."""
        if self._raw_socket is None:
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
        # The rest of a body that was answered already is the client's own trouble.
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
            raise ConnectionError("an answer is on its way already")
        phrase = HTTPStatus(status).phrase.lower()
        what = f"this is no HTTP request the mirror can read ({phrase})"
        if self.entry.proxy:
            return plain_response(status, what)
        error = OciError(ErrorCode.UNSUPPORTED, what, status=status)
        response = error_response(error)
        response.force_close()
        return response
