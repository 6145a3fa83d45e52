"""TLS records, and how they arrive, do not change what the mirror reads."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.fakes import FakeRegistry
from tests.http.test_response_cache import request, tls_files
from tests.running import Mirror, running
from tests.waiting import limit

pytestmark = [pytest.mark.slow]

PINGS = request("/v2/") * 2 + request("/v2/", "Connection: close")
LONG = request("/v2/", "Content-Length: 300000", "Connection: close", method="PUT")
ALL = 1 << 20


class Client:
    """Makes TLS records apart from sending them."""

    def __init__(self, context: ssl.SSLContext, streams) -> None:
        self.reader, self.writer = streams
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname="127.0.0.1")

    async def shake_hands(self) -> None:
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self.writer.write(self._outgoing.read())
                await self._receive()
            else:
                self.writer.write(self._outgoing.read())
                return

    def records(self, data: bytes, size: int) -> bytes:
        """The data in records of ``size`` bytes each."""
        for start in range(0, len(data), size):
            self._tls.write(data[start : start + size])
        return self._outgoing.read()

    def close_notify(self) -> bytes:
        with pytest.raises(ssl.SSLWantReadError):
            self._tls.unwrap()
        return self._outgoing.read()

    async def send(self, data: bytes, size: int) -> None:
        """Send in segments of ``size`` bytes."""
        for start in range(0, len(data), size):
            self.writer.write(data[start : start + size])
            await self.writer.drain()
            await asyncio.sleep(0)  # lets the mirror read it

    async def rest(self) -> bytes:
        """All that the mirror sends until it ends TLS."""
        said = b""
        while True:
            try:
                piece = self._tls.read(ALL)
            except ssl.SSLWantReadError:
                await self._receive()
                continue
            except ssl.SSLZeroReturnError:
                return said
            if not piece:
                return said
            said += piece

    async def _receive(self) -> None:
        if data := await self.reader.read(ALL):
            self._incoming.write(data)
        else:
            self._incoming.write_eof()


@pytest.fixture
async def mirror(tmp_path, upstream: FakeRegistry) -> AsyncIterator[tuple[Mirror, ssl.SSLContext]]:
    context, files = tls_files(tmp_path)
    async with running(tmp_path, {"docker.io": upstream.url}, server=files) as one:
        yield one, context


@asynccontextmanager
async def connected(mirror: tuple[Mirror, ssl.SSLContext]) -> AsyncIterator[Client]:
    host, port = mirror[0].url.removeprefix("http://").split(":")
    client = Client(mirror[1], await asyncio.open_connection(host, int(port)))
    async with limit():
        await client.shake_hands()
        yield client
    client.writer.close()


@pytest.mark.parametrize("segment", [1, 60, ALL])
@pytest.mark.parametrize("record", [1, 7, 1000, ALL])
async def test_each_request_is_answered(mirror, record, segment):
    async with connected(mirror) as client:
        await client.send(client.records(PINGS, record), segment)
        assert (await client.rest()).count(b"HTTP/1.1 200 ") == 3


@pytest.mark.parametrize("record", [100, 16 * 1024])
async def test_a_body_longer_than_all_buffers_is_read(mirror, record):
    async with connected(mirror) as client:
        await client.send(client.records(LONG + bytes(300_000), record), ALL)
        assert (await client.rest()).startswith(b"HTTP/1.1 4")


@pytest.mark.parametrize("segment", [1, ALL])
async def test_a_client_that_ends_tls_gets_its_end(mirror, segment):
    async with connected(mirror) as client:
        await client.send(client.records(PINGS[:20], 20) + client.close_notify(), segment)
        assert await client.rest() == b""
        assert await client.reader.read() == b""


async def test_a_damaged_record_ends_the_connection(mirror):
    async with connected(mirror) as client:
        damaged = bytearray(client.records(PINGS, ALL))
        damaged[-1] ^= 1
        await client.send(bytes(damaged), ALL)
        with pytest.raises(ssl.SSLError):
            await client.rest()
