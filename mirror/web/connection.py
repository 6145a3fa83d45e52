"""One connection: aiohttp's, which counts itself and repeats what was answered before.

Rests on private parts of aiohttp's RequestHandler; ``tests/web/test_hot.py`` says
which, and pyproject.toml pins the minor version.
"""

import asyncio
import os
import socket
import time
from collections import deque
from collections.abc import Callable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from aiohttp import web
from aiohttp.helpers import rfc822_formatted_time
from aiohttp.web_protocol import RequestHandler

from mirror.oci.errors import ErrorCode, OciError
from mirror.web.crowd import Crowd
from mirror.web.entry import Entry
from mirror.web.forwarded import plain_address
from mirror.web.hot import HotAnswer, HotTable, whole_head
from mirror.web.reception import Reception
from mirror.web.responses import error_response, plain_response

if TYPE_CHECKING:
    from mirror.web.server import Server

_MORE: Final = getattr(socket, "MSG_MORE", 0)  # Linux: head and body in one segment


class Connection(RequestHandler):
    """Repeats hot answers, and answers what is no HTTP with the spec's JSON too."""

    __slots__ = (
        "_clean",
        "_counted",
        "_crowd",
        "_heads",
        "_raw_socket",
        "_reception",
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
        crowd: Crowd,
        entry: Entry,
        **settings: Any,
    ) -> None:
        super().__init__(server, **settings)
        self._server = server
        self._crowd = crowd
        self._reception = server.reception
        self._table = server.reception.table
        self._counted = ""  # whose it is; empty for a proxy's, which are those of all its clients
        self._clean = True  # nothing but whole requests has come, each in one piece
        self._raw_socket: socket.socket | None = None
        self._winding_down: Callable[[], None] | None = None
        self.entry = entry
        self.when_ended: Callable[[], None] | None = None
        self.client = ""  # or a proxy
        self.proxied = False  # a trusted proxy says who asks
        self.refusal = ""
        self._heads: deque[bytes] = deque()  # of requests that are not begun with

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if self.entry.upstream:  # counted and let in already, by the proxy's port
            self.client = self.entry.client
            return
        peer = transport.get_extra_info("peername")
        self.client = plain_address(peer[0]) if isinstance(peer, tuple) else ""
        self.proxied = self._reception.proxies.trusts(self.client)
        self._counted = "" if self.proxied else self.client
        self.refusal = self._crowd.enter(self._counted)
        if self.refusal or self.entry.proxy or not self._is_open():
            self._table = None  # no short cut past who has to be asked
        if transport.get_extra_info("sslcontext") is None:
            self._raw_socket = getattr(transport.get_extra_info("socket"), "_sock", None)
        if self._crowd.overrun and isinstance(transport, asyncio.Transport):
            transport.abort()

    def connection_lost(self, exc: BaseException | None) -> None:
        if not self.entry.upstream:
            self._crowd.leave(self._counted)
        self._raw_socket = None
        super().connection_lost(exc)
        if self.when_ended is not None:
            self.when_ended()

    def inside(self, entry: Entry) -> "Connection":
        """The handler of a connection that is made inside this one."""
        return self._server.connection(entry)

    def give_away(
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

    def go_by(self, reception: Reception) -> None:
        """Be treated by other rules from the next request on, if these are others.

        What has no short cut gets none: of what came before nobody knows where it ends.
        """
        if reception is self._reception:
            return
        self._reception = reception
        if not self.entry.upstream:  # else who asks was found out by the proxy's port
            self.proxied = reception.proxies.trusts(self.client)
        self._table = reception.table if self._table is not None and self._is_open() else None
        if self._table is None:
            self._heads.clear()

    def _is_open(self) -> bool:
        # Behind a proxy each answer is kept for the client it was for, who had been let in.
        return (
            self._reception.admission.users is None
            if self.proxied
            else self._reception.admission.is_open_to(self.client)
        )

    def key(self, data: bytes) -> bytes:
        """What to find the answer to a request by: from a proxy the same bytes mean another."""
        if self.entry.upstream:
            return b"\0" + self.entry.upstream.encode() + b"\0" + data
        return b"\0" + data if self.proxied else data

    def begun(self) -> bytes:
        """The bytes of the request that is begun with now; none where they may be more or less."""
        return self._heads.popleft() if self._heads else b""

    def data_received(self, data: bytes) -> None:
        if self._server.reception is not self._reception:
            self.go_by(self._server.reception)
        if self._table is not None and self._clean:
            if self._repeated(self._table, data):
                return
            self._clean = whole_head(data)
            if self._clean:
                self._heads.append(data)
        super().data_received(data)

    def _is_idle(self) -> bool:
        return self._waiter is not None and not self._waiter.done()

    def _repeated(self, table: HotTable, data: bytes) -> bool:
        started = time.monotonic()
        answer = table.get(self.key(data), started)
        if answer is None or not self._is_idle() or self._close or self._force_close:
            return False
        transport = self.transport
        if transport is None or transport.get_write_buffer_size():
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

    def _sent_file(self, transport: asyncio.Transport, answer: HotAnswer, file: int) -> bool:
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
