"""The server: times, answers and counts every request; errors become the spec's JSON."""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping

from aiohttp import HttpVersion11, hdrs, web
from aiohttp.web_protocol import RequestHandler

from mirror.http.admission import ConnectionLimiter
from mirror.http.body import reset
from mirror.http.connection import Connection
from mirror.http.exchange import (
    EXCHANGE,
    UNTRACED,
    UPSTREAM_TIME,
    AccessRecord,
    Exchange,
    Observer,
    describe,
)
from mirror.http.forwarded import Origin
from mirror.http.response_cache import MOST_REQUEST_BYTES, CachedResponse, HotKey
from mirror.http.responses import COMMON, error_of, error_response, outcome_of, plain_response
from mirror.http.server_options import DIRECT, ConnectionContext, ServerOptions
from mirror.oci.errors import OciError
from mirror.oci.reference import InvalidName
from mirror.policy.rules import PolicyError
from mirror.shares import FullError, asking
from mirror.spans import Tracer, current, entered
from mirror.upstream.errors import UpstreamError
from mirror.upstream.routing import ForbiddenError, UnknownRegistryError

_log = logging.getLogger(__name__)
_UNUSUAL = frozenset(
    {
        *("authorization", "cookie", "expect", "transfer-encoding", "upgrade"),
        *("if-match", "if-modified-since", "if-none-match", "if-unmodified-since"),
        *("if-range", "range"),
        "traceparent",  # has another value in each request
    }
)
#: Bytes, inside proxied connections: registries issue long tokens and upload URLs.
_INSIDE: Mapping[str, int] = {"max_field_size": 64 * 1024, "max_line_size": 64 * 1024}
_EXPECTED = (
    *(OciError, InvalidName, UnknownRegistryError, ForbiddenError, PolicyError),
    *(UpstreamError, FullError),
)


class Server(web.Server):
    """Accepts connections, passes requests to their handlers and reports each to the observer."""

    def __init__(
        self,
        options: ServerOptions,
        observer: Observer,
        tracer: Tracer | None = None,
    ) -> None:
        """Serve with ``options``; must be called in a running loop."""
        limits = options.limits
        super().__init__(
            self._handle,
            handler_cancellation=True,
            access_log=None,
            auto_decompress=False,  # the mirror does not interpret clients' bodies
            keepalive_timeout=limits.idle_seconds,
        )
        self._limiter = ConnectionLimiter(
            limits.connections, limits.connections_per_client, observer.connections_open
        )
        self.options = options
        self.ended = False
        self._observer = observer
        self._tracer = tracer

    def __call__(self) -> RequestHandler:
        return self.connection(DIRECT)

    def connection(self, entry: ConnectionContext) -> Connection:
        """Return the handler of a new connection that arrived as ``entry`` says."""
        sizes = _INSIDE if entry.upstream else {}
        settings = {**self._kwargs, **sizes}
        return Connection(self, self._limiter, entry, loop=self._loop, **settings)

    def receive_by(self, options: ServerOptions) -> None:
        """Use ``options`` from the next request on; connections stay open."""
        limits = options.limits
        self.options = options
        self._limiter.limit(limits.connections, limits.connections_per_client)
        self._kwargs["keepalive_timeout"] = limits.idle_seconds

    async def shutdown(self, timeout: float | None = None) -> None:  # noqa: ARG002, ASYNC109  # aiohttp's
        """Close all connections; running answers get ``drain_seconds`` to finish."""
        self.ended = True
        await super().shutdown(self.options.limits.drain_seconds)

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        options = self.options
        _connection(request).apply_options(options)
        with options.requests.one():
            if self._tracer is None or request.path in UNTRACED:
                return await self._timed(request, options)
            return await self._traced(self._tracer, request, options)

    async def _traced(
        self, tracer: Tracer, request: web.BaseRequest, options: ServerOptions
    ) -> web.StreamResponse:
        traceparent = request.headers.get("traceparent", "")
        with entered(tracer.request(request.method, traceparent)) as span:
            try:
                return await self._timed(request, options)
            finally:
                describe(span, request)

    async def _timed(self, request: web.BaseRequest, options: ServerOptions) -> web.StreamResponse:
        exchange = request[EXCHANGE] = Exchange(time.monotonic(), _origin(request, options))
        key = _hot_key(request, exchange.origin)
        exchange.repeatable = key is not None and options.table is not None
        entry = _connection(request).entry
        exchange.connected, exchange.user = entry.upstream, entry.user
        exchange.trace_id = current().trace_id
        before = UPSTREAM_TIME.set(exchange.upstream_time)
        self._observer.request_began(exchange)
        epoch = 0 if options.table is None else options.table.epoch
        try:
            with asking(exchange.origin.client):
                response = await self._answer(request, exchange, options)
            exchange.status = response.status
            if not response.prepared:
                for name, value in COMMON.items():
                    response.headers.setdefault(name, value)
                await response.prepare(request)
                exchange.answered()
            if key is not None and options is self.options and _is_current(options, epoch):
                self._remember(key, request, response, exchange)
            return response
        except (asyncio.CancelledError, ConnectionError):
            exchange.whole = False
            raise
        finally:
            UPSTREAM_TIME.reset(before)
            if exchange.kept is not None:
                exchange.kept.close()
            self._observer.request_ended(self._ending(request, exchange))

    async def _answer(
        self, request: web.BaseRequest, exchange: Exchange, options: ServerOptions
    ) -> web.StreamResponse:
        try:
            return await self._admitted(request, exchange, options)
        except _EXPECTED as error:
            answer = error_of(error, exchange.kind)
        except ConnectionError:  # the client has gone
            raise
        except Exception as error:
            _log.exception("answering %s %s failed", request.method, request.path)
            answer = error_of(error, exchange.kind)
        exchange.detail = answer.message
        if exchange.first_byte is not None:  # an error response cannot follow a part of a body
            reset(request)
            raise ConnectionAbortedError(answer.message)
        exchange.outcome = outcome_of(answer)
        if _connection(request).entry.proxy and request.method == hdrs.METH_CONNECT:
            return plain_response(answer.status, answer.message, answer.headers)
        return error_response(answer)

    async def _admitted(
        self, request: web.BaseRequest, exchange: Exchange, options: ServerOptions
    ) -> web.StreamResponse:
        connection, origin = _connection(request), exchange.origin
        entry = connection.entry
        with self._limiter.counting(origin.client if origin.told else "") as excess:
            if not entry.upstream:  # else the proxy port has admitted the connection
                admission = options.admission
                check = admission.check_proxied if entry.proxy else admission.check
                exchange.user = await check(request, origin.client, connection.refusal or excess)
            routes = options.routes if entry == DIRECT else options.proxy
            assert routes is not None, "a proxy port has handlers"
            return await routes.handler(request)(request)

    def _remember(
        self,
        key: HotKey,
        request: web.BaseRequest,
        response: web.StreamResponse,
        exchange: Exchange,
    ) -> None:
        kept, table, protocol = exchange.kept, self.options.table, request.protocol
        if kept is None or table is None or not isinstance(protocol, Connection):
            return
        if not (response.keep_alive and exchange.whole):
            return
        if protocol.repeats_from_memory(kept.size):
            kept.load()
        body = b"" if request.method == "HEAD" else kept.body
        first, rest = _head(response)
        file, kept.file = kept.file, None  # from here on the response cache owns the descriptor
        exchange.kept = None
        ended = self._observer.repeated(self._ending(request, exchange), kept.used)
        if exchange.origin.told:
            ended = _of(exchange.origin.client, ended)
        answer = CachedResponse(first, rest, body, file, kept.size, kept.until, kept.digest, ended)
        table.put(key, answer)

    def _ending(self, request: web.BaseRequest, exchange: Exchange) -> AccessRecord:
        return AccessRecord(
            exchange=exchange,
            method=request.method,
            path=request.raw_path,
            client=exchange.origin.client,
            agent=request.headers.get("User-Agent", ""),
            seconds=time.monotonic() - exchange.started,
        )


def _is_current(options: ServerOptions, epoch: int) -> bool:
    """Whether the response cache was not emptied since the request began."""
    return options.table is not None and options.table.epoch == epoch


def _connection(request: web.BaseRequest) -> Connection:
    assert isinstance(request.protocol, Connection), "the server makes no other ones"
    return request.protocol


def _origin(request: web.BaseRequest, options: ServerOptions) -> Origin:
    connection = _connection(request)
    seen = Origin(connection.client, request.scheme, request.headers.get("Host", ""))
    return options.proxies.origin(seen, request.headers) if connection.proxied else seen


def _hot_key(request: web.BaseRequest, origin: Origin) -> HotKey | None:
    """Return the cache key of a request; None if an equal request may need another answer."""
    connection = _connection(request)
    # The proxy named no client: an equal request may come from another proxy or client.
    if not _is_plain(request) or (connection.proxied and not origin.told):
        return None
    key = connection.hot_key(request._message, request.content)  # noqa: SLF001  # parser's result
    return key if key is not None and key.size <= MOST_REQUEST_BYTES else None


def _of(client: str, ended: Callable[[str, float], None]) -> Callable[[str, float], None]:
    """Return ``ended`` with the client that a proxy named in place of the proxy's address."""
    return lambda _, seconds: ended(client, seconds)


def _is_plain(request: web.BaseRequest) -> bool:
    """Whether the request is HTTP/1.1 and has no field that can change the answer each time."""
    return request.version == HttpVersion11 and _UNUSUAL.isdisjoint(
        name.lower() for name in request.headers
    )


def _head(response: web.StreamResponse) -> tuple[bytes, bytes]:
    """Return status line and fields as aiohttp writes them, split around the date's value."""
    fields = [f"{name}: {value}\r\n" for name, value in response.headers.items()]
    head = f"HTTP/1.1 {response.status} {response.reason}\r\n" + "".join(fields)
    first, date, rest = head.partition(f"Date: {response.headers['Date']}")
    assert date, "aiohttp gives every answer a date"
    return f"{first}Date: ".encode(), f"{rest}\r\n".encode()
