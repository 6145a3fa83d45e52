"""A mirror that has to go through a proxy itself lets its clients through by way of that."""

import asyncio
import base64
import contextlib
import socket

import pytest

from mirror.user_error import UserError
from tests.peers.process import free_port
from tests.proxy.clients import connected
from tests.running import running

pytestmark = [pytest.mark.slow]


class Parent:
    """A proxy that answers as told, and then echoes."""

    def __init__(self) -> None:
        self.port = 0
        self.answer = b"HTTP/1.1 200 OK\r\nX-Via: parent\r\n\r\nbanner "
        self.asked: list[str] = []

    async def take(self, reader, writer) -> None:
        # The client may leave without a word when it has its answer.
        left = (asyncio.IncompleteReadError, ConnectionError)
        with contextlib.closing(writer), contextlib.suppress(*left):
            self.asked.append((await reader.readuntil(b"\r\n\r\n")).decode())
            writer.write(self.answer)
            if b" 200 " in self.answer:
                writer.write(await reader.readexactly(5))


@pytest.fixture
async def parent():
    proxy = Parent()
    async with await asyncio.start_server(proxy.take, "127.0.0.1", 0) as server:
        proxy.port = server.sockets[0].getsockname()[1]
        yield proxy


@pytest.fixture
async def office(tmp_path, parent):
    fetch = {"proxy": f"http://me:p%40ss@127.0.0.1:{parent.port}"}
    proxy = {"listen": "127.0.0.1:0", "allow": ["*", f"127.0.0.1:{parent.port}"]}
    table = {"docker.io": "http://127.0.0.1:9"}
    async with running(tmp_path, table, proxy=proxy, fetch=fetch) as mirror:
        yield mirror


async def test_a_server_is_reached_through_the_parent(office, parent):
    async with connected(office) as raw:
        assert " 200 " in await raw.connect("auth.invalid:443", early=b"hello")
        assert await raw.rest() == b"banner hello", "what comes right behind the head is not lost"
    login = base64.b64encode(b"me:p@ss").decode()
    fields = f"Host: auth.invalid:443\r\nProxy-Authorization: Basic {login}\r\n\r\n"
    assert parent.asked == [f"CONNECT auth.invalid:443 HTTP/1.1\r\n{fields}"]


async def test_what_is_private_stays_private(office, parent):
    async with connected(office) as raw:
        assert (await raw.connect("10.0.0.1:443")).startswith("HTTP/1.1 403 ")
    assert parent.asked == []


async def test_what_is_near_and_allowed_is_reached_without_the_parent(office, parent):
    async with connected(office) as raw:
        assert " 200 " in await raw.connect(f"127.0.0.1:{parent.port}")
        await raw.send(b"straight\r\n\r\nhello")
        assert await raw.rest() == parent.answer + b"hello"
    assert parent.asked == ["straight\r\n\r\n"]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"HTTP/1.1 403 Forbidden\r\n\r\n", "does not connect to auth.invalid:443: 403"),
        (b"HTTP/1.1 407 Who\r\nProxy-Authenticate: Basic\r\n\r\n", "user and password"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "is not HTTP"),
        (b"", "does not answer a CONNECT as a proxy"),
        (b"HTTP/1.1 200 OK\r\n", "does not answer a CONNECT as a proxy"),
        (b"x" * 20000, "does not answer a CONNECT as a proxy"),
    ],
)
async def test_a_parent_that_does_not_is_told_of(office, parent, answer, said):
    parent.answer = answer.replace(b" 200 ", b" 2OO ") if answer.endswith(b"OK\r\n") else answer
    async with connected(office) as raw:
        told = await raw.connect("auth.invalid:443")
    assert told.startswith("HTTP/1.1 502 ")
    assert said in told
    assert "p@ss" not in told


async def test_a_parent_that_cannot_be_reached_is_named_without_its_password(tmp_path):
    port = free_port()
    fetch = {"proxy": f"http://me:p%40ss@127.0.0.1:{port}"}
    table = {"docker.io": "http://127.0.0.1:9"}
    async with (
        running(tmp_path, table, proxy={"listen": "127.0.0.1:0"}, fetch=fetch) as mirror,
        connected(mirror) as raw,
    ):
        told = await raw.connect("auth.invalid:443")
    assert told.startswith("HTTP/1.1 502 ")
    assert f"auth.invalid:443 through the proxy http://127.0.0.1:{port} ([fetch] proxy)" in told
    assert "p@ss" not in told
    assert "p%40ss" not in told


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", socket.gethostname()])
async def test_a_mirror_that_would_ask_itself_does_not_start(tmp_path, monkeypatch, host):
    port = free_port()
    monkeypatch.setenv("HTTPS_PROXY", f"http://{host}:{port}")
    with pytest.raises(UserError, match="HTTPS_PROXY leads to this mirror's own proxy"):
        async with running(tmp_path, {}, proxy={"listen": f"127.0.0.1:{port}"}):
            pass


async def test_the_environment_names_one_too(tmp_path, parent, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{parent.port}")
    monkeypatch.setenv("NO_PROXY", "direct.invalid")
    table = {"docker.io": "http://127.0.0.1:9"}
    async with running(tmp_path, table, proxy={"listen": "127.0.0.1:0"}) as mirror:
        async with connected(mirror) as raw:
            assert " 200 " in await raw.connect("auth.invalid:443")
        async with connected(mirror) as raw:
            assert "does not resolve" in await raw.connect("direct.invalid:443")
    assert len(parent.asked) == 1
