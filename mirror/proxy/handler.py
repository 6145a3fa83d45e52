"""The proxy port: CONNECT, and requests with an absolute URL.

Translation only: the rules are in ``permission``, the answers in ``registries`` and ``tunnel``.
"""

import asyncio
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, Protocol

from aiohttp import HttpVersion10, hdrs, web

from mirror.http.connection import Connection
from mirror.http.exchange import EXCHANGE
from mirror.http.responses import plain_response
from mirror.http.server_options import ConnectionContext, Handler
from mirror.http.tls import Handshakes
from mirror.oci.errors import ErrorCode, OciError
from mirror.proxy.permission import (
    HTTP_PORT,
    HTTPS_PORT,
    Destination,
    InvalidDestination,
    Permission,
    TunnelError,
    parse_absolute,
    parse_authority,
)
from mirror.proxy.registries import Registries
from mirror.proxy.tunnel import ESTABLISHED, Connector, Tunnel
from mirror.upstream.routing import Router
from mirror.user_error import UserError

if TYPE_CHECKING:
    from mirror.ca import CertificateIssuer

_HANDSHAKE_SECONDS: Final = 30.0


class Observer(Protocol):
    """Receives the events of proxy mode."""

    def proxy_connected(self, upstream: str, result: str) -> None:
        """Handle a CONNECT; ``upstream`` is empty unless the server is a configured registry."""

    def tunnels_open(self, change: int) -> None:
        """Change the number of open tunnels by ``change``."""

    def tunnel_ended(self, to_client: int, to_server: int) -> None:
        """Handle the end of a tunnel; the arguments are the bytes in each direction."""


class ProxyHandler:
    """Answers the clients that use the mirror as their HTTP proxy."""

    def __init__(
        self,
        directory: Router,
        registries: Registries,
        mint: "CertificateIssuer",
        permission: Permission,
        connector: Connector,
        tunnels: int,
        idle_seconds: float,
        observer: Observer,
    ) -> None:
        """Open at most ``tunnels`` tunnels; close one that is idle for ``idle_seconds``."""
        self._directory = directory
        self._registries = registries
        self._mint = mint
        self._permission = permission
        self._connector = connector
        self._tunnels = tunnels
        self._idle_seconds = idle_seconds
        self._observer = observer
        self._open = 0
        self._handshakes = Handshakes(_HANDSHAKE_SECONDS)

    def handler(self, request: web.BaseRequest) -> Handler:
        """Return the handler of a request."""
        if request[EXCHANGE].connected:
            return self._inside
        return self._connect if request.method == hdrs.METH_CONNECT else self._forward

    async def _inside(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer a request inside TLS, if it is for the registry that the client connected to.

        Raises:
            OciError: the request is for another server (421; RFC 9110, 7.4), or names no valid
                server (400).
        """
        exchange = request[EXCHANGE]
        upstream = self._directory.upstream(exchange.connected)
        hosts = request.headers.getall(hdrs.HOST, [])
        if len(hosts) > 1 or (not hosts and request.version > HttpVersion10):
            text = "a request has one Host field (RFC 9112, 3.2)"
            raise OciError(ErrorCode.UNSUPPORTED, text, status=400)
        try:
            places = [parse_authority(host, HTTPS_PORT) for host in hosts]
            if "://" in request.raw_path and not request.raw_path.startswith("/"):
                place, _ = parse_absolute(request.raw_path, HTTPS_PORT, "https://")
                places.append(place)
        except InvalidDestination as error:
            raise OciError(ErrorCode.UNSUPPORTED, str(error), status=400) from error
        for place in places:
            if self._directory.lookup_place(place.host, place.port, HTTPS_PORT) != upstream:
                text = f"this connection was made to {upstream}, and {place} is not that registry"
                raise OciError(ErrorCode.DENIED, text, status=421)
        return await self._registries.answer(request)

    async def _forward(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer ``GET http://registry/v2/...``: over plain http only registries are served."""
        try:
            destination, _ = parse_absolute(request.raw_path, HTTP_PORT)
        except InvalidDestination as error:
            return _refused(request, TunnelError(400, str(error)))
        upstream = self._directory.lookup_place(destination.host, destination.port, HTTP_PORT)
        if upstream is None:
            return _refused(request, TunnelError(403, _no_registry(destination)))
        exchange = request[EXCHANGE]
        exchange.connected = upstream
        # The target takes precedence over the Host field (RFC 9112, 3.2.2).
        usual = destination.port == HTTP_PORT
        host = str(destination).removesuffix(f":{HTTP_PORT}") if usual else str(destination)
        exchange.origin = replace(exchange.origin, host=host)
        return await self._registries.answer(request)

    async def _connect(self, request: web.BaseRequest) -> web.StreamResponse:
        exchange = request[EXCHANGE]
        exchange.kind = "tunnel"
        upstream = ""
        try:
            destination = _destination(request)
            exchange.reference = str(destination)
            place = destination.host, destination.port
            upstream = self._directory.lookup_place(*place, HTTPS_PORT) or ""
            if upstream:
                return await self._stand_in(request, upstream, destination.host)
            return await self._let_through(request, destination)
        except TunnelError as error:
            self._observer.proxy_connected(upstream, "denied" if error.status < 500 else "failed")
            return _refused(request, error)

    async def _stand_in(
        self, request: web.BaseRequest, upstream: str, host: str
    ) -> web.StreamResponse:
        """Terminate TLS in the name of a registry, and answer the requests inside."""
        exchange, connection = request[EXCHANGE], _connection(request)
        exchange.upstream = upstream
        try:
            context = self._mint.context(host)
        except UserError as error:
            raise TunnelError(502, str(error)) from error
        self._observer.proxy_connected(upstream, "intercepted")
        client, ended = exchange.origin.client, asyncio.Event()

        def inside() -> Connection:
            inner = ConnectionContext(upstream=upstream, client=client, user=exchange.user)
            made = connection.inside(inner)
            made.when_ended = ended.set
            return made

        transport, early = connection.detach_transport()
        try:
            transport.write(ESTABLISHED)
            await self._handshakes.speak_tls(transport, early, context, client, inside)
            await ended.wait()
        except OSError as error:
            exchange.detail = _no_tls(error)
            exchange.whole = False
        finally:
            transport.close()
            connection.let_go()
        return _Given()

    async def _let_through(
        self, request: web.BaseRequest, destination: Destination
    ) -> web.StreamResponse:
        exchange, connection = request[EXCHANGE], _connection(request)
        private = self._permission.check(destination, exchange.origin.client)
        with self._counted():
            server = await self._connector.connect(destination, private=private)
            self._observer.proxy_connected("", "tunnelled")
            tunnel = Tunnel(self._idle_seconds)
            transport, early = connection.detach_transport(tunnel.wind_down)
            try:
                await tunnel.run(transport, server, early)
            finally:
                exchange.sent_bytes = tunnel.to_client
                self._observer.tunnel_ended(tunnel.to_client, tunnel.to_server)
                connection.let_go()
        return _Given()

    @contextmanager
    def _counted(self) -> Iterator[None]:
        if self._open >= self._tunnels:
            text = f"too many tunnels are open ([proxy] tunnels = {self._tunnels})"
            raise TunnelError(503, text)
        self._open += 1
        self._observer.tunnels_open(1)
        try:
            yield
        finally:
            self._open -= 1
            self._observer.tunnels_open(-1)


class _Given(web.StreamResponse):
    """A finished response without output: its transport was detached and then closed."""

    @property
    def prepared(self) -> bool:
        return True

    async def prepare(self, request: web.BaseRequest) -> None:  # noqa: ARG002  # aiohttp's
        self.force_close()

    async def write_eof(self, data: Any = b"") -> None:
        pass


def _connection(request: web.BaseRequest) -> Connection:
    assert isinstance(request.protocol, Connection), "Server makes only such connections"
    return request.protocol


def _destination(request: web.BaseRequest) -> Destination:
    """Return the server that a CONNECT names.

    Raises:
        TunnelError: the CONNECT is malformed or has a body (400).
    """
    if hdrs.TRANSFER_ENCODING in request.headers or request.headers.get(
        hdrs.CONTENT_LENGTH, "0"
    ) not in {"0", ""}:
        raise TunnelError(400, "a CONNECT has no body (RFC 9110, 9.3.6)")
    if request.version < HttpVersion10:
        raise TunnelError(400, "the request line of a CONNECT must end in HTTP/1.1")
    try:
        return parse_authority(request.raw_path)
    except InvalidDestination as error:
        raise TunnelError(400, f"CONNECT: {error}") from error


def _refused(request: web.BaseRequest, error: TunnelError) -> web.Response:
    request[EXCHANGE].detail = error.message
    return plain_response(error.status, error.message)


def _no_registry(destination: Destination) -> str:
    return (
        f"over plain http this proxy serves only the registries of its upstreams, and "
        f'{destination} is not one; its operator adds it with [upstreams."{destination}"]'
    )


def _no_tls(error: OSError) -> str:
    """Return the reason why the TLS handshake failed, for the log."""
    if isinstance(error, ssl.SSLError):
        reason = error.reason or str(error)
        if "ALERT" in reason:
            return f"the client does not trust the CA of this mirror (mirror ca): {reason}"
        return f"the client does not speak TLS, or no version that the mirror accepts: {reason}"
    return "the connection ended before the TLS handshake was complete"
