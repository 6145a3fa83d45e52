"""The server for clients, below the requests."""

import asyncio
import socket

import pytest
from aiohttp import web

from mirror.http.admission import Admission
from mirror.http.forwarded import Proxies
from mirror.http.response_cache import ResponseCache
from mirror.http.server import Server
from mirror.http.server_options import Requests, ServerLimits, ServerOptions
from tests.http.test_response_cache import Handlers, Ignoring
from tests.waiting import limit


def server_of(handlers, drain_seconds: float) -> Server:
    limits = ServerLimits(10, 10, 60.0, drain_seconds)
    requests = Requests()
    return Server(
        ServerOptions(handlers, Admission([], None), Proxies(), limits, None, requests), Ignoring()
    )


class Endless:
    """Begins an answer, and never ends it."""

    def handler(self, _: web.BaseRequest):
        return self._answer

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"begun")
        await asyncio.Event().wait()
        return response


async def test_a_connection_that_is_accepted_as_the_server_ends_is_closed():
    server = server_of(Handlers(ResponseCache()), 1.0)
    await server.shutdown()
    accepted, client = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=client)
    await asyncio.get_running_loop().connect_accepted_socket(server, accepted)
    async with limit():
        assert await reader.read() == b""
    writer.close()
    await writer.wait_closed()


@pytest.mark.slow
@pytest.mark.parametrize("drain_seconds", [0.0, 4.0])
async def test_an_answer_that_does_not_end_is_cut_off_after_the_time_to_drain(drain_seconds):
    server = server_of(Endless(), drain_seconds)
    accepted, client = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=client)
    await asyncio.get_running_loop().connect_accepted_socket(server, accepted)
    writer.write(b"GET / HTTP/1.1\r\nHost: mirror\r\n\r\n")
    async with limit():
        assert await reader.readuntil(b"begun")
        clock = asyncio.get_running_loop().time
        began = clock()
        await server.shutdown()
        took = clock() - began
        assert b"begun" not in await reader.read()
    writer.close()
    await writer.wait_closed()
    # aiohttp's own shutdown takes twice the time, and never ends if it is 0.
    assert drain_seconds <= took < 2 * drain_seconds or not drain_seconds
