"""More than the mirror may take at once: a plain no, and nobody else notices."""

import asyncio
import contextlib
import json
import socket

import pytest

from tests.fakes import Fault, random_bytes
from tests.running import Mirror, eventually, running
from tests.waiting import limit, until

pytestmark = [pytest.mark.slow]

BLOB = "/v2/library/app/blobs/"


def told(answer) -> str:
    assert answer.status == 503
    assert int(answer.headers["Retry-After"]) >= 1
    return json.loads(answer.body)["errors"][0]["message"]


async def test_downloads_wait_for_their_turn(tmp_path, upstream):
    digests = [upstream.add_blob(random_bytes(200_000, seed)) for seed in range(6)]
    upstream.hold(64 * 1024)
    limits = {"downloads": 2}
    async with running(tmp_path, {"docker.io": upstream.url}, limits=limits) as mirror:
        pulls = [asyncio.create_task(mirror.get(BLOB + digest)) for digest in digests]
        await eventually(mirror, "mirror_clients_waiting", 6)
        await until(lambda: upstream.count("blob") == 2)
        await mirror.get("/v2/")
        assert upstream.count("blob") == 2
        upstream.release()
        assert {(await pull).status for pull in pulls} == {200}


async def test_who_finds_the_line_full_is_told_to_come_again(tmp_path, upstream):
    digests = [upstream.add_blob(random_bytes(1000, seed)) for seed in range(4)]
    upstream.faults.append(Fault(hang_before=True))
    limits = {"downloads": 1, "queue": 1, "queue_timeout": "2s"}
    async with running(tmp_path, {"docker.io": upstream.url}, limits=limits) as mirror:
        first = asyncio.create_task(mirror.get(BLOB + digests[0]))
        await until(lambda: upstream.count("blob") == 1)
        second = asyncio.create_task(mirror.get(BLOB + digests[1]))
        await eventually(mirror, "mirror_clients_waiting", 2)
        assert "too many downloads wait already" in told(await mirror.get(BLOB + digests[2]))
        assert "no download ended in time" in told(await second)
        assert not first.done()
        first.cancel()
        # What is cached needs no turn, and what is joined needs none of its own.
        assert upstream.count("blob") == 1


async def test_what_passes_through_takes_a_turn_too(tmp_path, upstream):
    digests = [upstream.add_blob(random_bytes(2_000_000, seed)) for seed in range(2)]
    upstream.hold(64 * 1024)
    limits = {"downloads": 1}
    cache = {"max_size": "1MiB"}
    upstreams = {"docker.io": upstream.url}
    async with running(tmp_path, upstreams, limits=limits, cache=cache) as mirror:
        urls = [mirror.url + BLOB + digest for digest in digests]
        answers = [asyncio.create_task(mirror.session.get(url)) for url in urls]
        async with limit():
            begun, waiting = await asyncio.wait(answers, return_when=asyncio.FIRST_COMPLETED)
        await mirror.get("/v2/")
        assert (len(begun), len(waiting), [each.done() for each in waiting]) == (1, 1, [False])
        upstream.release()
        async with limit():
            bodies = [await (await answer).read() for answer in answers]
        assert bodies == [upstream.blobs[digest] for digest in digests]


class Connection:
    """A raw connection that sends what it is told."""

    def __init__(self, mirror: Mirror) -> None:
        host, _, port = mirror.url.removeprefix("http://").partition(":")
        self.socket = socket.create_connection((host, int(port)))
        self.socket.setblocking(False)

    async def ask(self, data: bytes = b"GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n") -> bytes:
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(self.socket, data)
        async with limit():
            return await loop.sock_recv(self.socket, 4096)

    def close(self) -> None:
        self.socket.close()


@pytest.mark.parametrize("key", ["connections", "connections_per_client"])
async def test_one_connection_too_many_is_told_so(tmp_path, upstream, key):
    limits = {key: 8}
    async with running(tmp_path, {"docker.io": upstream.url}, limits=limits) as mirror:
        crowd = [Connection(mirror) for _ in range(8)]
        assert all([b" 200 " in await connection.ask() for connection in crowd])
        late = Connection(mirror)
        answer = await late.ask()
        assert b" 503 " in answer
        assert b"Retry-After" in answer
        assert f"[limits] {key} = 8".encode() in answer
        crowd.pop().close()
        late.close()
        async with limit():
            while b" 200 " not in await (again := Connection(mirror)).ask():
                again.close()
        for connection in [*crowd, again]:
            connection.close()


async def test_far_too_many_are_not_even_told(tmp_path, upstream):
    async with running(tmp_path, {"docker.io": upstream.url}, limits={"connections": 4}) as mirror:
        crowd = [Connection(mirror) for _ in range(12)]
        answered = 0
        for connection in crowd:
            try:
                answered += b" 503 " in await connection.ask()
            except ConnectionError:
                continue
        assert 1 <= answered <= 2
        for connection in crowd:
            connection.close()


async def test_a_slow_loris_is_sent_away(tmp_path, upstream):
    limits = {"idle_timeout": "500ms"}
    async with running(tmp_path, {"docker.io": upstream.url}, limits=limits) as mirror:
        loris = Connection(mirror)
        loop = asyncio.get_running_loop()

        async def crawl() -> None:
            for byte in b"GET /v2/ HTTP/1.1\r\nX-Slow: " + b"a" * 1000:
                await loop.sock_sendall(loris.socket, bytes([byte]))
                await asyncio.sleep(0.05)

        async with limit():
            with pytest.raises(ConnectionError):
                await crawl()
        loris.close()
        assert (await mirror.get("/v2/")).status == 200


@pytest.mark.parametrize("kept", [True, False], ids=["from the disk", "passing through"])
async def test_a_client_that_takes_nothing_is_let_go(tmp_path, upstream, kept):
    digest = upstream.add_blob(random_bytes(32 << 20))
    limits = {"stall_timeout": "300ms"}
    cache = {"max_size": "1GiB" if kept else "1MiB"}
    upstreams = {"docker.io": upstream.url}
    async with running(tmp_path, upstreams, limits=limits, cache=cache) as mirror:
        stalled = Connection(mirror)
        loop = asyncio.get_running_loop()
        request = f"GET {BLOB}{digest} HTTP/1.1\r\nHost: x\r\n\r\n"
        await loop.sock_sendall(stalled.socket, request.encode())
        async with limit():  # what is over is counted
            while not any("mirror_requests_total" in name for name in await mirror.metrics()):
                await asyncio.sleep(0.05)

        async def read_on() -> int:
            received = 0
            while piece := await loop.sock_recv(stalled.socket, 1 << 20):
                received += len(piece)
            return received

        with contextlib.suppress(ConnectionError):
            assert await read_on() < 32 << 20
        assert (await mirror.metrics())["mirror_clients_waiting"] == 0
        stalled.close()
