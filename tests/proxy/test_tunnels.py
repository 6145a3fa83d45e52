"""What is let through goes both ways as it is; what is not is told in a line."""

import asyncio
import base64
import re
import socket
import struct
import time

import bcrypt
import pytest

from tests.proxy.clients import connected
from tests.running import eventually, running
from tests.waiting import limit

pytestmark = [pytest.mark.slow]

LINGER = struct.pack("ii", 1, 0)


class Server:
    """Takes one connection after the other, for the test to talk on."""

    def __init__(self) -> None:
        self.place = ""
        self.taken: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]]
        self.taken = asyncio.Queue()

    async def take(self):
        async with limit():
            return await self.taken.get()


@pytest.fixture
async def server():
    talk = Server()

    writers = []

    async def take(reader, writer) -> None:
        writers.append(writer)
        await talk.taken.put((reader, writer))

    listening = await asyncio.start_server(take, "127.0.0.1", 0)
    async with listening:
        talk.place = f"127.0.0.1:{listening.sockets[0].getsockname()[1]}"
        yield talk
        for writer in writers:
            writer.transport.abort()


@pytest.fixture
async def office(tmp_path, server):
    proxy = {"listen": "127.0.0.1:0", "allow": ["*", server.place], "tunnels": 3}
    table = {"docker.io": "http://127.0.0.1:9"}
    async with running(tmp_path, table, proxy=proxy, limits={"idle_timeout": "2s"}) as mirror:
        yield mirror


async def test_bytes_go_both_ways_and_half_close_is_passed_on(office, server):
    async with connected(office) as raw:
        assert " 200 " in await raw.connect(server.place, early=b"at once ")
        reader, writer = await server.take()
        await raw.send(b"and later")
        raw.writer.write_eof()
        async with limit():
            assert await reader.read() == b"at once and later", "the end arrives"
        writer.write(b"still talking")
        await writer.drain()
        async with limit():
            assert await raw.reader.readexactly(13) == b"still talking"
        writer.close()
        assert await raw.rest() == b""
    await eventually(office, "mirror_tunnels", 0)
    figures = await office.metrics()
    assert figures['mirror_tunnel_bytes_total{direction="to_client"}'] == 13
    assert figures['mirror_tunnel_bytes_total{direction="to_server"}'] == 17
    assert figures['mirror_proxy_connections_total{result="tunnelled",upstream="unknown"}'] == 1


async def test_the_server_may_end_first(office, server):
    async with connected(office) as raw:
        await raw.connect(server.place)
        reader, writer = await server.take()
        writer.write(b"bye")
        writer.write_eof()
        assert await raw.rest() == b"bye"
        await raw.send(b"thanks")
        raw.writer.write_eof()
        async with limit():
            assert await reader.read() == b"thanks"
        writer.close()


@pytest.mark.parametrize("who", ["client", "server"])
async def test_a_reset_is_passed_on_as_one(office, server, who):
    async with connected(office) as raw:
        await raw.connect(server.place)
        reader, writer = await server.take()
        ends = {"client": (raw.writer, reader), "server": (writer, raw.reader)}
        breaking, feeling = ends[who]
        raw_socket = breaking.get_extra_info("socket")
        raw_socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER)
        breaking.transport.abort()
        async with limit():
            with pytest.raises(ConnectionResetError):
                await feeling.read()
        writer.close()
    await eventually(office, "mirror_tunnels", 0)


async def test_who_does_not_read_is_not_read_for(office, server):
    """A slow side stops the fast one, whatever it sends: memory stays bounded."""
    piece, sent = b"x" * (1 << 20), 0
    async with connected(office) as raw:
        await raw.connect(server.place)
        reader, writer = await server.take()
        raw.writer.transport.set_write_buffer_limits(high=1)
        for _ in range(64):
            raw.writer.write(piece)
            try:
                async with asyncio.timeout(0.3):
                    await raw.writer.drain()
            except TimeoutError:
                break
            sent += len(piece)
        assert sent < 32 * len(piece), "the system's buffers are full, and nothing else grows"
        async with limit():
            await reader.readexactly(sent)
        writer.close()


async def test_as_many_as_are_allowed_and_not_one_more(office, server):
    async with connected(office) as one, connected(office) as two, connected(office) as three:
        for raw in (one, two, three):
            assert " 200 " in await raw.connect(server.place)
        async with connected(office) as four:
            said = await four.connect(server.place)
            assert said.startswith("HTTP/1.1 503 ")
            assert "tunnels = 3" in said
        one.writer.close()
        (await server.take())[1].close()
        await eventually(office, "mirror_tunnels", 2)
        async with connected(office) as four:
            assert " 200 " in await four.connect(server.place)


@pytest.mark.long
@pytest.mark.slow
async def test_a_tunnel_that_is_idle_is_ended(tmp_path, server):
    proxy = {"listen": "127.0.0.1:0", "allow": [server.place], "idle_timeout": "2s"}
    async with running(tmp_path, {"docker.io": "http://127.0.0.1:9"}, proxy=proxy) as mirror:
        async with connected(mirror) as raw:
            await raw.connect(server.place)
            _, writer = await server.take()
            started = time.monotonic()
            for _ in range(25):
                await raw.send(b"x")
                await asyncio.sleep(0.1)
            with pytest.raises(ConnectionResetError):
                await raw.rest()
            assert time.monotonic() - started > 4, "idle since the last byte, not the first"
            writer.close()
        await eventually(mirror, "mirror_tunnels", 0)


async def test_a_stop_does_not_wait_for_tunnels_that_are_idle(tmp_path, server):
    proxy = {"listen": "127.0.0.1:0", "allow": [server.place]}
    table = {"docker.io": "http://127.0.0.1:9"}
    drain = {"drain": "10m"}
    async with limit(), running(tmp_path, table, proxy=proxy, server=drain) as mirror:
        raw = connected(mirror)
        client = await raw.__aenter__()
        await client.connect(server.place)
        _, writer = await server.take()
    writer.close()
    await raw.__aexit__(None, None, None)


# What is not let through.


@pytest.mark.parametrize(
    ("target", "status", "said"),
    [
        ("169.254.169.254:443", 403, "private = true"),
        ("10.0.0.1:443", 403, "private = true"),
        ("[::1]:443", 403, "private = true"),
        ("localhost:443", 403, "private = true"),
        ("example.com:25", 403, '"example.com:25" in allow'),
        ("does-not-exist.invalid:443", 502, "does not resolve"),
        ("example.com", 400, "lacks the port"),
        ("example.com:0", 400, "port between 1 and 65535"),
        ("127.1:443", 400, "not an IPv4 address"),
    ],
)
async def test_a_refusal_says_in_one_line_what_to_change(office, target, status, said):
    async with connected(office) as raw:
        answer = await raw.connect(target)
    head, _, body = answer.partition("\n")
    assert head.startswith(f"HTTP/1.1 {status} ")
    assert said in body
    assert body.count("\n") == 1


@pytest.mark.parametrize(
    "field", ["Content-Length: 5", "Transfer-Encoding: chunked", "Content-Length: 00"]
)
async def test_a_connect_with_a_body_is_refused(office, server, field):
    async with connected(office) as raw:
        assert "HTTP/1.1 400" in await raw.connect(server.place, field, early=b"hello")


@pytest.mark.parametrize(
    "request_line",
    [
        b"CONNECT\r\n\r\n",
        b"CONNECT  HTTP/1.1\r\n\r\n",
        b"CONNECT a:443 HTTP/9.9\r\n\r\n",
        b"CONNECT a:443\r\n\r\n",
        b"CONNECT a:443 HTTP/1.1\r\nno colon\r\n\r\n",
        b"CONNECT a:443 HTTP/1.1\r\n" + b"X: " + b"x" * 20000 + b"\r\n\r\n",
        b"CONNECT " + b"a" * 20000 + b":443 HTTP/1.1\r\n\r\n",
        b"CONNECT a:443 HTTP/1.1\r\n" + b"X: y\r\n" * 500 + b"\r\n",
        b"CONNECT /v2/ HTTP/1.1\r\n\r\n",
        b"CONNECT http://a:443/ HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 64,
        b"GET /v2/ HTTP/1.1\r\nHost: mirror\r\n\r\n",
        b"GET https://a/ HTTP/1.1\r\nHost: a\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
    ],
)
async def test_what_is_no_request_to_a_proxy_is_400_in_a_line(office, request_line):
    async with connected(office) as raw:
        await raw.send(request_line)
        answer = await raw.rest()
    assert re.match(rb"HTTP/[01].[019] 400 ", answer)
    assert answer.partition(b"\r\n\r\n")[2].count(b"\n") == 1


async def test_what_comes_behind_a_refused_connect_is_not_looked_at(office):
    behind = b"GET http://127.0.0.1:9/v2/ HTTP/1.1\r\nHost: x\r\n\r\n"
    async with connected(office) as raw:
        answer = await raw.connect("10.0.0.1:443", early=behind)
    assert answer.count("HTTP/1.1") == 1


@pytest.mark.long
@pytest.mark.parametrize("said", [b"", b"CONN", b"CONNECT example.com:443 HTTP/1.1\r\nHost: e"])
async def test_who_does_not_finish_a_request_is_not_waited_for(office, said):
    async with connected(office) as raw:
        await raw.send(said)
        assert await raw.rest() == b""


async def test_a_password_is_asked_for_as_a_proxy_does(tmp_path, server):
    hashed = bcrypt.hashpw(b"secret", bcrypt.gensalt(4)).decode().replace("$2b$", "$2y$")
    (tmp_path / "htpasswd").write_text(f"alice:{hashed}\n")
    proxy = {"listen": "127.0.0.1:0", "allow": [server.place]}
    access = {"htpasswd_file": str(tmp_path / "htpasswd")}
    table = {"docker.io": "http://127.0.0.1:9"}
    async with running(tmp_path / "c", table, proxy=proxy, access=access) as mirror:
        for login, expected in (("alice:secret", "200"), ("alice:wrong", "407")):
            basic = base64.b64encode(login.encode()).decode()
            async with connected(mirror) as raw:
                said = await raw.connect(server.place, f"Proxy-Authorization: Basic {basic}")
                assert said.startswith(f"HTTP/1.1 {expected} ")
        async with connected(mirror) as raw:
            await raw.send(f"CONNECT {server.place} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            answer = await raw.rest()
        assert b'Proxy-Authenticate: Basic realm="mirror"' in answer
        assert b"HTTPS_PROXY=" in answer
