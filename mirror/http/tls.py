"""TLS with clients: a certificate that reloads when its files change, handshakes, and a site.

Handshakes are independent of the protocol inside TLS.  Silent clients cost little: a connection
gets its TLS object with its first bytes, and the number of concurrent handshakes is limited.

Depends on private parts of asyncio's SSLProtocol, in the way of asyncio's ``start_tls``.
"""

import asyncio
import logging
import socket
import ssl
import time
from asyncio.sslproto import SSLAgainErrors, SSLProtocol
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

from aiohttp import web

from mirror.http.forwarded import plain_address
from mirror.http.turns import LineFullError, Turns
from mirror.trouble import Problem, Trouble

_log = logging.getLogger(__name__)
#: The operator is told of the end of a certificate so long before, or a tenth of its life if less.
_NOTICE_SECONDS: Final = 14 * 86400.0
_RENEW: Final = "renew the files of [server] tls_certificate and tls_key; they are then read again"
_HANDSHAKE_SECONDS: Final = 30.0
_MOST_GREETED: Final = 10_000  # before or in the handshake; [limits] applies only after it

_MOST_EARLY: Final = 32 * 1024  # bytes; a client begins with one TLS record of at most 16 KiB
_FIRST_BYTES: Final = 4096  # usually the whole ClientHello
_AT_ONCE: Final = 64
_AT_ONCE_PER_CLIENT: Final = 16
_WAITING_PER_CLIENT: Final = 10_000  # ConnectionLimiter limits the connections of a client
_SHAKING_SECONDS: Final = 10  # counted from the first bytes


class Certificate:
    """A certificate chain and its key in files that another program renews."""

    def __init__(self, chain: Path, key: Path, wall_clock: Callable[[], float] = time.time) -> None:
        """Read the files; the log warns of a certificate that ends.

        Raises:
            OSError: a file cannot be read, or the key does not fit the certificate
                (``ssl.SSLError`` is an OSError).
        """
        self.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        # The client's order, as with nginx: Docker and containerd prefer AES-128-GCM, which costs
        # less CPU than OpenSSL's first cipher, and clients without AES instructions ChaCha20.
        self.context.options &= ~ssl.OP_CIPHER_SERVER_PREFERENCE
        self.context.set_alpn_protocols(["http/1.1"])
        self._files = (chain, key)
        self._read = self._changed()
        self._trouble = Trouble()
        self._ending = Trouble()
        self._wall_clock = wall_clock
        self.context.load_cert_chain(chain, key)
        self._life = _life(chain)
        self._watch_end()

    @property
    def problem(self) -> Problem | None:
        """Why the files were not read again, or that the certificate ends; None if all is well."""
        return self._trouble.problem or self._ending.problem

    def reload(self) -> None:
        """Read the files again for new connections; after an error the certificate stays."""
        self._watch_end()
        chain, key = self._files
        try:
            changed = self._changed()
            if changed == self._read:
                self._trouble.over()
                return
            # Try the files in another context: a key that does not fit leaves one half changed.
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(chain, key)
            self.context.load_cert_chain(chain, key)
        except OSError as error:
            title = "The new certificate cannot be used; the previous one stays"
            remedy = "correct the files of [server] tls_certificate and tls_key"
            if self._trouble.met(Problem(title, error.strerror or str(error), remedy)):
                _log.error("%s: %s; the previous certificate stays", chain, error)
        else:
            self._trouble.over()
            self._read = changed
            self._life = _life(chain)
            _log.info("%s: read again", chain)

    def use(self, chain: Path, key: Path) -> None:
        """Use other files for new connections.

        Raises:
            OSError: as in ``__init__``; the previous certificate stays.
        """
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(chain, key)
        self._files = (chain, key)
        self._read = self._changed()
        self.context.load_cert_chain(chain, key)
        self._life = _life(chain)
        self._watch_end()

    def _watch_end(self) -> None:
        begin, end = self._life
        left = end - self._wall_clock()
        if left > min(_NOTICE_SECONDS, (end - begin) / 10):
            self._ending.over()
            return
        moment = f"{datetime.fromtimestamp(end, UTC):%Y-%m-%d %H:%M} UTC"
        state = "expires soon" if left > 0 else "has expired, and clients refuse it"
        title = f"The mirror's certificate {state}"
        if self._ending.problem is not None and self._ending.problem.title != title:
            self._ending.over()
        if self._ending.met(Problem(title, f"it is valid until {moment}", _RENEW)):
            _log.warning("%s: it is valid until %s: %s", title, moment, _RENEW)

    def _changed(self) -> tuple[int, ...]:
        return tuple(file.stat().st_mtime_ns for file in self._files)


def _life(chain: Path) -> tuple[float, float]:
    """Return when the first certificate of a file begins and ends, in Unix seconds."""
    # Imported late: mirrors without TLS need no such library in memory.
    from cryptography.x509 import load_pem_x509_certificates  # noqa: PLC0415

    try:
        first, *_ = load_pem_x509_certificates(chain.read_bytes())
    except (OSError, ValueError):  # the file has just changed, or only OpenSSL can read it
        return 0.0, float("inf")
    return first.not_valid_before_utc.timestamp(), first.not_valid_after_utc.timestamp()


class _Tls(SSLProtocol):
    """SSLProtocol for requests: a smaller read buffer than asyncio's 256 KiB, and fewer reads."""

    max_size = 32 * 1024

    def _do_read__copied(self: Any) -> None:
        """Read while there is something to read.

        asyncio reads until OpenSSL raises SSLWantReadError: 4 % of the CPU of a 64 KiB answer.
        """
        chunks: list[bytes] = []
        try:
            while self._incoming.pending or self._sslobj.pending():
                chunks.append(self._sslobj.read(self.max_size))
                if not chunks[-1]:  # close_notify
                    break
        except SSLAgainErrors:  # the last record is not complete
            pass
        if data := b"".join(chunks):
            self._app_protocol.data_received(data)
        if chunks and not chunks[-1]:
            self._call_eof_received()
            self._start_shutdown()


class _Silent(asyncio.BufferedProtocol):
    """Waits for a client's first bytes and reads at most ``_FIRST_BYTES`` of them."""

    def __init__(self) -> None:
        self.buffer = bytearray(_FIRST_BYTES)
        self.arrived: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._transport: asyncio.Transport | None = None

    def take(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        transport.set_protocol(self)
        transport.resume_reading()

    def get_buffer(self, sizehint: int) -> bytearray:  # noqa: ARG002  # asyncio's own
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        assert self._transport is not None, "take() sets the transport before reading starts"
        self._transport.pause_reading()
        if not self.arrived.done():
            self.arrived.set_result(nbytes)

    def eof_received(self) -> None:
        self.connection_lost(None)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # asyncio's own
        if not self.arrived.done():
            self.arrived.set_result(0)


class _Waiting(asyncio.Protocol):
    """Buffers the data behind the handshake until the inner protocol exists."""

    def __init__(self) -> None:
        self.data = b""
        self.lost = False

    def data_received(self, data: bytes) -> None:
        self.data += data

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # asyncio's own
        self.lost = True


class Handshakes:
    """Performs TLS handshakes with clients, a limited number at once."""

    def __init__(self, seconds: float) -> None:
        """Allow a client ``seconds`` for its first bytes and its handshake together."""
        self._seconds = seconds
        self._turns = Turns(_AT_ONCE, _AT_ONCE_PER_CLIENT, _WAITING_PER_CLIENT)

    async def speak_tls(
        self,
        transport: asyncio.Transport,
        early: bytes,
        context: ssl.SSLContext,
        client: str,
        inside: Callable[[], asyncio.Protocol],
    ) -> None:
        """Perform the handshake, then connect the protocol that ``inside`` makes.

        ``early`` are the client's bytes that were read before.

        Raises:
            OSError: the client closed the connection, was too slow, or does not speak TLS
                (``ssl.SSLError`` is an OSError).
        """
        if len(early) > _MOST_EARLY:
            raise ConnectionAbortedError("too much data before the handshake")
        waiting = _Waiting()
        try:
            async with asyncio.timeout(self._seconds):
                early = early or await _first_bytes(transport)
                async with self._turns.turn(client):
                    secure = await _shaken(transport, early, context, waiting)
        except LineFullError as error:
            raise ConnectionAbortedError("too many waiting handshakes of one client") from error
        if secure is None or secure.is_closing() or waiting.lost:
            raise ConnectionResetError("the client has gone")
        protocol = inside()
        secure.set_protocol(protocol)
        protocol.connection_made(secure)
        if waiting.data:
            protocol.data_received(waiting.data)


async def _first_bytes(transport: asyncio.Transport) -> bytes:
    silent = _Silent()
    silent.take(transport)
    count = await silent.arrived
    if not count:
        raise ConnectionResetError("the client has gone")
    return bytes(silent.buffer[:count])


async def _shaken(
    transport: asyncio.Transport, early: bytes, context: ssl.SSLContext, waiting: _Waiting
) -> asyncio.Transport | None:
    """Perform the handshake as asyncio's ``start_tls`` does, with bytes that were read before.

    Returns the transport inside TLS; None if the client has gone.
    """
    loop = asyncio.get_running_loop()
    shaken = loop.create_future()
    tls = _Tls(
        loop,
        waiting,
        context,
        shaken,
        server_side=True,
        call_connection_made=False,
        ssl_handshake_timeout=_SHAKING_SECONDS,
    )
    transport.pause_reading()
    transport.set_protocol(tls)
    steps = [
        loop.call_soon(tls.connection_made, transport),
        loop.call_soon(_feed, transport, early),
        loop.call_soon(transport.resume_reading),
    ]
    try:
        await shaken
    except BaseException:
        transport.close()
        for step in steps:
            step.cancel()
        raise
    return tls._app_transport


def _feed(transport: asyncio.Transport, early: bytes) -> None:
    protocol = transport.get_protocol()
    if not isinstance(protocol, asyncio.BufferedProtocol):  # the client has gone
        return
    while early and not transport.is_closing():
        buffer = memoryview(protocol.get_buffer(len(early)))
        count = min(len(buffer), len(early))
        buffer[:count] = early[:count]
        protocol.buffer_updated(count)
        early = early[count:]


class TlsSite(web.SockSite):
    """A listening socket with TLS; a connection costs little before its handshake."""

    def __init__(
        self, runner: web.ServerRunner, raw: socket.socket, context: ssl.SSLContext, backlog: int
    ) -> None:
        super().__init__(runner, raw, backlog=backlog)
        self._context = context
        self._handshakes = Handshakes(_HANDSHAKE_SECONDS)
        self._greeted: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        await web.BaseSite.start(self)
        loop = asyncio.get_running_loop()
        make = partial(_Arrival, self._arrived)
        self._server = await loop.create_server(make, sock=self._sock, backlog=self._backlog)

    async def stop(self) -> None:
        await super().stop()
        for task in self._greeted:
            task.cancel()

    def _arrived(self, transport: asyncio.Transport) -> None:
        if len(self._greeted) >= _MOST_GREETED:
            transport.abort()
            return
        transport.pause_reading()
        task = asyncio.create_task(self._greet(transport))
        self._greeted.add(task)
        task.add_done_callback(self._greeted.discard)

    async def _greet(self, transport: asyncio.Transport) -> None:
        server = self._runner.server
        assert server is not None, "the runner is set up before its sites"
        client = plain_address(transport.get_extra_info("peername")[0])
        try:
            await self._handshakes.speak_tls(transport, b"", self._context, client, server)
        except OSError as error:
            _log.debug("TLS handshake with %s failed: %s", client, error)
        except asyncio.CancelledError:
            transport.abort()
            raise
        else:
            return
        transport.close()


class _Arrival(asyncio.Protocol):
    """Hands each new connection to ``arrived``."""

    def __init__(self, arrived: Callable[[asyncio.Transport], None]) -> None:
        self._arrived = arrived

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport), "a stream socket has such a transport"
        self._arrived(transport)
