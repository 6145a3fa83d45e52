"""The server: every request is timed, answered, counted; every failure becomes the spec's JSON."""

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from mirror.oci.errors import ErrorCode, OciError
from mirror.oci.reference import InvalidName
from mirror.upstream.directory import ForbiddenError, UnknownRegistryError
from mirror.upstream.errors import UpstreamError
from mirror.web.admission import Admission
from mirror.web.crowd import Crowd
from mirror.web.exchange import EXCHANGE, Ending, Exchange, Observer
from mirror.web.responses import error_of, error_response, outcome_of
from mirror.web.routes import Routes
from mirror.web.streaming import reset

_log = logging.getLogger(__name__)
_EXPECTED = (OciError, InvalidName, UnknownRegistryError, ForbiddenError, UpstreamError)


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """Connections of all clients and of one address; seconds one may wait for a request."""

    connections: int
    connections_per_client: int
    idle_seconds: float


class _Connection(RequestHandler):
    """Counts itself, and answers what is no HTTP with the spec's JSON too."""

    __slots__ = ("client", "crowd", "refusal")

    def __init__(self, server: "Server", crowd: Crowd, **settings: Any) -> None:
        super().__init__(server, **settings)
        self.crowd = crowd
        self.client = ""
        self.refusal = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        peer = transport.get_extra_info("peername")
        self.client = peer[0] if isinstance(peer, tuple) else ""
        self.refusal = self.crowd.enter(self.client)
        if self.crowd.overrun and isinstance(transport, asyncio.Transport):
            transport.abort()

    def connection_lost(self, exc: BaseException | None) -> None:
        self.crowd.leave(self.client)
        super().connection_lost(exc)

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
        error = OciError(ErrorCode.UNSUPPORTED, what, status=status)
        response = error_response(error)
        response.force_close()
        return response


class Server(web.Server):
    """Connections in, answers out."""

    def __init__(
        self,
        routes: Routes,
        observer: Observer,
        limits: ServerLimits,
        admission: Admission,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Bind the handlers; must be called in a running loop."""
        super().__init__(
            self._handle,
            handler_cancellation=True,
            access_log=None,
            auto_decompress=False,  # no body of a client's is ever looked at
            keepalive_timeout=limits.idle_seconds,
        )
        self._crowd = Crowd(limits.connections, limits.connections_per_client)
        self._admission = admission
        self._routes = routes
        self._observer = observer
        self._clock = clock

    def __call__(self) -> RequestHandler:
        """The handler of a new connection."""
        return _Connection(self, self._crowd, loop=self._loop, **self._kwargs)

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        exchange = request[EXCHANGE] = Exchange(started=self._clock())
        try:
            response = await self._answer(request, exchange)
            exchange.status = response.status
            if not response.prepared:
                await response.prepare(request)
                exchange.answered()
            return response
        except (asyncio.CancelledError, ConnectionError):
            exchange.whole = False
            raise
        finally:
            self._observer.request_ended(self._ending(request, exchange))

    async def _answer(self, request: web.BaseRequest, exchange: Exchange) -> web.StreamResponse:
        try:
            protocol = request.protocol
            refusal = protocol.refusal if isinstance(protocol, _Connection) else ""
            await self._admission.check(request, refusal)
            return await self._routes.handler(request)(request)
        except _EXPECTED as error:
            answer = error_of(error, exchange.kind)
            exchange.detail = answer.message
        except ConnectionError:  # the client has gone
            raise
        except Exception as error:
            _log.exception("answering %s %s failed", request.method, request.path)
            answer = error_of(error, exchange.kind)
        if exchange.first_byte is not None:  # never an error in the middle of a body
            reset(request)
            raise ConnectionAbortedError(answer.message)
        exchange.outcome = outcome_of(answer)
        return error_response(answer)

    def _ending(self, request: web.BaseRequest, exchange: Exchange) -> Ending:
        return Ending(
            exchange=exchange,
            method=request.method,
            path=request.raw_path,
            client=request.remote or "",
            agent=request.headers.get("User-Agent", ""),
            seconds=self._clock() - exchange.started,
        )
