"""Tunnels: connect to a server, also through a parent proxy, and copy bytes in both directions.

A name is resolved once, and the connection is made to the address that was checked, so a later
answer of the name server (DNS rebinding) has no effect.

Each side is read only as fast as the other side accepts data.  The end of one direction
(half-close) is passed on, and the other direction continues; a reset is passed on as a reset.
"""

import asyncio
import base64
import contextlib
import os
import re
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final
from urllib.parse import unquote

import aiohappyeyeballs
from yarl import URL

from mirror.http.body import break_off
from mirror.proxy.permission import Destination, TunnelError, check_address, leads_inside
from mirror.upstream.proxies import Proxy

_MOST_HEAD: Final = 16 * 1024
_STATUS: Final = re.compile(rb"HTTP/1\.[01] ([0-9]{3})[^\r\n]*\r?\n", re.ASCII)
_END: Final = (b"\r\n\r\n", b"\n\n")


async def ask_parent(raw: socket.socket, parent: Proxy, destination: Destination) -> None:
    """Make the parent proxy at the other end of ``raw`` connect to a server.

    Raises:
        TunnelError: the parent refuses, or its answer is not HTTP.
        OSError: the connection to the parent is lost.
    """
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(raw, _request(parent.url, destination))
    head = b""
    # Byte by byte: the bytes behind the head come from the server and belong to the client.
    while not head.endswith(_END):
        piece = await loop.sock_recv(raw, 1) if len(head) < _MOST_HEAD else b""
        if not piece:
            raise TunnelError(502, f"the proxy {parent} does not answer a CONNECT as a proxy")
        head += piece
    status = _STATUS.match(head)
    if status is None or not status[1].startswith(b"2"):
        said = status[1].decode() if status else "its answer is not HTTP"
        text = f"the proxy {parent} does not connect to {destination}: {said}"
        raise TunnelError(502, f"{text} (it wants user and password)" if said == "407" else text)


def _request(parent: URL, destination: Destination) -> bytes:
    lines = [f"CONNECT {destination} HTTP/1.1", f"Host: {destination}"]
    if parent.raw_user is not None:
        login = f"{parent.user}:{unquote(parent.raw_password or '')}"
        lines.append(f"Proxy-Authorization: Basic {base64.b64encode(login.encode()).decode()}")
    return "\r\n".join([*lines, "", ""]).encode()


AddressInfo = tuple[int, int, int, str, tuple[Any, ...]]
Resolve = Callable[[str, int], Awaitable[Sequence[AddressInfo]]]
_STAGGER_SECONDS: Final = 0.25  # RFC 8305, 5


async def resolve_by_system(host: str, port: int) -> Sequence[AddressInfo]:
    """Return the addresses of a host from the system's resolver; OSError if it has none."""
    loop = asyncio.get_running_loop()
    return await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)


class Connector:
    """Connects to servers, directly or through a parent proxy."""

    def __init__(
        self,
        seconds: float,
        resolve: Resolve = resolve_by_system,
        parent: Callable[[Destination], Proxy | None] = lambda _: None,
    ) -> None:
        """Limit resolving and connecting to ``seconds`` together.

        ``parent`` returns the parent proxy for a server, None for a direct connection.
        """
        self._seconds = seconds
        self._resolve = resolve
        self._parent = parent

    async def connect(self, destination: Destination, *, private: bool) -> socket.socket:
        """Return a connected, non-blocking socket; ``private`` allows private addresses.

        Raises:
            TunnelError: the server's name does not resolve, all its addresses are private ones
                that are not allowed, or no connection succeeds in time.
        """
        parent = self._parent(destination)
        place = str(destination) if parent is None else f"{destination} through the proxy {parent}"
        try:
            async with asyncio.timeout(self._seconds):
                if parent is not None:
                    return await self._through(parent, destination, private=private)
                return await _started(await self._addresses(destination, private=private))
        except TimeoutError as error:
            text = f"{place} did not answer within {self._seconds:g} s"
            raise TunnelError(504, f"{text} ([fetch] connect_timeout)") from error
        except OSError as error:
            reason = error.strerror or "it cannot be reached"
            if isinstance(error, ConnectionError) and error.errno:
                reason = os.strerror(error.errno).lower()  # asyncio has its own text
            raise TunnelError(502, f"cannot connect to {place}: {reason}") from error

    async def _through(
        self, parent: Proxy, destination: Destination, *, private: bool
    ) -> socket.socket:
        """Connect through a parent proxy, which may resolve names that this host cannot."""
        url = parent.url
        if url.scheme != "http" or url.host is None or url.port is None:
            raise TunnelError(502, f"a tunnel needs a parent proxy over http, not {parent}")
        known: Sequence[AddressInfo] = ()
        with contextlib.suppress(OSError, UnicodeError):
            known = await self._resolve(destination.host, destination.port)
        for info in known:
            check_address(destination, info[4][0], private=private)
        if any(leads_inside(info[4][0]) for info in known):
            # An allowed private address is reached directly, not through the parent.
            return await _started(known)
        raw = await _started(await self._resolve(url.host, url.port))
        try:
            await ask_parent(raw, parent, destination)
        except BaseException:
            raw.close()
            raise
        return raw

    async def _addresses(self, destination: Destination, *, private: bool) -> list[AddressInfo]:
        try:
            found = await self._resolve(destination.host, destination.port)
        except (OSError, UnicodeError) as error:
            text = f"the name {destination.host} does not resolve"
            raise TunnelError(502, f"{text}: check the name, and DNS on the mirror") from error
        refusal: TunnelError | None = None
        addresses = []
        for info in found:
            try:
                check_address(destination, info[4][0], private=private)
                addresses.append(info)
            except TunnelError as error:
                refusal = error
        if not addresses:
            raise refusal or TunnelError(502, f"the name {destination.host} has no address")
        return addresses


async def _started(addresses: Sequence[AddressInfo]) -> socket.socket:
    return await aiohappyeyeballs.start_connection(
        addresses, happy_eyeballs_delay=_STAGGER_SECONDS, interleave=1
    )


#: The complete answer to a successful CONNECT; it must not have fields that announce a body.
ESTABLISHED: Final = b"HTTP/1.1 200 Connection established\r\n\r\n"
_HALF_SECONDS: Final = 60.0  # idle time after a half-close: the other side may be gone
_LAST_SECONDS: Final = 1.0  # idle time while the mirror stops


class Tunnel:
    """One tunnel between a client and a server."""

    def __init__(self, idle_seconds: float) -> None:
        """Close the tunnel after ``idle_seconds`` without data."""
        self._loop = asyncio.get_running_loop()
        self._idle_seconds = idle_seconds
        self._moved = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None
        self._over = self._loop.create_future()
        self._client = _End(self)
        self._server = _End(self)
        self._client.other, self._server.other = self._server, self._client

    @property
    def to_client(self) -> int:
        """Bytes sent to the client."""
        return self._server.count

    @property
    def to_server(self) -> int:
        """Bytes sent to the server."""
        return self._client.count

    async def run(self, client: asyncio.Transport, server: socket.socket, early: bytes) -> None:
        """Answer the CONNECT, and copy bytes until both directions have ended.

        ``early`` are bytes of the client that were read before.

        Raises:
            OSError: the connection to the server is already lost.
        """
        try:
            await self._loop.create_connection(lambda: self._server, sock=server)
            client.set_protocol(self._client)
            self._client.connection_made(client)
            client.write(ESTABLISHED)
            if early:
                self._client.data_received(early)
            client.resume_reading()
            self._watch()
            await self._over
        finally:
            self._over.cancel()
            if self._timer is not None:
                self._timer.cancel()
            self._client.abort()
            self._server.abort()

    def wind_down(self) -> None:
        """Close the tunnel after a second without data; the mirror stops."""
        self._be_idle_at_most(_LAST_SECONDS)

    def half_closed(self) -> None:
        """Handle the end of one direction: shorten the idle time."""
        self.moved()
        self._be_idle_at_most(_HALF_SECONDS)

    def _be_idle_at_most(self, seconds: float) -> None:
        self._idle_seconds = min(self._idle_seconds, seconds)
        self._watch()

    def moved(self) -> None:
        """Restart the idle time: data was received or accepted."""
        self._moved = self._loop.time()

    def ended(self, error: BaseException | None) -> None:
        """Handle the loss of one side: close the other after its pending data, or reset it."""
        for end in (self._client, self._server):
            if error is not None:
                end.abort()
            else:
                end.close()
        if self._client.is_lost and self._server.is_lost and not self._over.done():
            self._over.set_result(None)

    def _watch(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._over.done():
            return
        left = self._moved + self._idle_seconds - self._loop.time()
        if left > 0:
            self._timer = self._loop.call_later(left, self._watch)
        else:
            self._client.abort()
            self._server.abort()


class _End(asyncio.Protocol):
    """One side of a tunnel; its data is written to the ``other`` side."""

    other: "_End"

    def __init__(self, tunnel: Tunnel) -> None:
        self._tunnel = tunnel
        self.transport: asyncio.Transport | None = None
        self.finished = False
        self.is_lost = False
        self.count = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.count += len(data)
        self._tunnel.moved()
        if self.other.transport is not None:
            self.other.transport.write(data)

    def pause_writing(self) -> None:
        if self.other.transport is not None:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        self._tunnel.moved()
        if self.other.transport is not None:
            self.other.transport.resume_reading()

    def eof_received(self) -> bool:
        self.finished = True
        self._tunnel.half_closed()
        if self.other.finished:
            self.close()
            self.other.close()
        elif self.other.transport is not None and not self.other.transport.is_closing():
            self.other.transport.write_eof()
        return True  # keep the transport open for the other direction

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_lost = True
        self._tunnel.ended(exc)

    def close(self) -> None:
        if self.transport is not None:
            self.transport.close()

    def abort(self) -> None:
        if self.transport is not None and not self.is_lost:
            break_off(self.transport)
