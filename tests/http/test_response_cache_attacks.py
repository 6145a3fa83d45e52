"""No request on one connection decides the answer to another request on another connection.

Each attack hides the exact bytes of a victim's request where no request is, beside requests that
are answered with something else.  The victim then has to get what it asks for.
"""

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import trustme

from tests.fakes import FakeRegistry, image, random_bytes
from tests.http.test_response_cache import Client, request
from tests.proxy.clients import Raw, trusting
from tests.proxy.clients import connected as connected_to_proxy
from tests.running import Mirror, running
from tests.waiting import limit

pytestmark = [pytest.mark.long]

REPO = "library/app"
APP = image(random_bytes(64 * 1024, 1))
EVIL = image(random_bytes(64 * 1024, 2))
Segments = list[bytes]


@dataclass(frozen=True)
class Attacker:
    """Makes requests that are answered with something else than the victim's."""

    path: str
    fields: tuple[str, ...]
    host: str

    def ask(self, *fields: str, method: str = "GET", version: str = "1.1") -> bytes:
        every = (*self.fields, *fields)
        return request(self.path, *every, method=method, version=version, host=self.host)

    def announce(self, body: bytes, *fields: str, method: str = "GET") -> bytes:
        return self.ask(f"Content-Length: {len(body)}", *fields, method=method)


_UPGRADE = ("Connection: Upgrade", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: YWJj")
_CHUNKED = "Transfer-Encoding: chunked"
_END = b"0\r\n\r\n"
_LEAVE = b""


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


#: From the attacker and the victim's bytes to the segments of each of the attacker's connections.
ATTACKS: dict[str, Callable[[Attacker, bytes], list[Segments]]] = {
    "a body in its own segment": lambda a, v: [[a.announce(v), v, a.ask()]],
    "a body, twice": lambda a, v: [[a.announce(v + v), v, v, a.ask(), a.ask()]],
    "a body of another request too": lambda a, v: [[a.announce(v + v), v + v, a.ask(), a.ask()]],
    "a body glued to its head": lambda a, v: [[a.announce(v) + v, a.ask()]],
    "a body glued to what follows": lambda a, v: [[a.announce(v), v + a.ask(), a.ask()]],
    "a body cut in two": lambda a, v: [[a.announce(v), v[:9], v[9:], a.ask()]],
    "a body cut where it is a request": lambda a, v: [[a.announce(b"x" + v), b"x", v, a.ask()]],
    "a head cut in two": lambda a, v: [[a.announce(v)[:30], a.announce(v)[30:], v, a.ask()]],
    "HEAD with a body": lambda a, v: [[a.announce(v, method="HEAD"), v, a.ask(), a.ask()]],
    "POST with a body": lambda a, v: [[a.announce(v, method="POST"), v, a.ask(), a.ask()]],
    "a chunk": lambda a, v: [[a.ask(_CHUNKED), b"%x\r\n" % len(v), v, b"\r\n" + _END, a.ask()]],
    "a chunk cut": lambda a, v: [[a.ask(_CHUNKED), _chunk(b"x" + v)[:-7], _chunk(v)[-7:] + _END]],
    "chunked with a trailer": lambda a, v: [
        [a.ask(_CHUNKED), _chunk(v), b"0\r\n", b"User-Agent: x\r\n\r\n", a.ask(), a.ask()]
    ],
    "pipelined bodies": lambda a, v: [
        [a.announce(v) + v + a.announce(v), v, a.ask() + a.ask(), a.ask()]
    ],
    "pipelined deeper than the queue": lambda a, v: [
        [*[a.announce(v), v] * 40, *[a.ask()] * 40],
        [a.ask() * 40 + a.announce(v), v, a.ask()],
    ],
    "a request and the start of a next": lambda a, v: [[a.ask() + v[:12], a.ask()], [a.ask()]],
    "blank lines first": lambda a, v: [[b"\r\n\r\n", a.announce(v), v, a.ask()]],
    "Upgrade to a websocket": lambda a, v: [
        [a.ask(*_UPGRADE, "Upgrade: websocket"), v, a.ask()],
        [a.ask(*_UPGRADE, "Upgrade: websocket") + v, a.ask(), a.ask()],
        # aiohttp answers nothing behind a body that it takes for one before a websocket.
        [a.announce(v, *_UPGRADE, "Upgrade: websocket"), v, a.ask(), _LEAVE],
    ],
    "Upgrade to h2c": lambda a, v: [
        [a.ask("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c"), v, a.ask()],
        [a.ask("Connection: Upgrade", "Upgrade: h2c") + v, a.ask(), a.ask()],
        [a.announce(v, "Connection: Upgrade", "Upgrade: h2c"), v, a.ask()],
    ],
    "Connection: upgrade to nothing": lambda a, v: [
        [a.announce(v, "Connection: upgrade"), v, a.ask()]
    ],
    "CONNECT": lambda a, v: [[request("a.test:443", method="CONNECT"), v, a.ask()]],
    "Expect: 100-continue": lambda a, v: [[a.announce(v, "Expect: 100-continue"), v, a.ask()]],
    "an error first": lambda a, v: [[b"\x16\x03\x01\r\n\r\n"], [a.announce(v), v, a.ask()]],
    "an error afterwards": lambda a, v: [[a.announce(v), v, a.ask(), b"\0\r\n\r\n"]],
    "an error glued to it": lambda a, v: [[a.announce(v), v + a.ask() + b"\0\r\n\r\n"]],
    "an error in between": lambda a, v: [[a.announce(v), v, b"GET\r\n\r\n", a.ask()]],
    "Connection: close": lambda a, v: [[a.announce(v, "Connection: close"), v, a.ask()]],
    "HTTP/1.0": lambda a, v: [
        [a.ask(f"Content-Length: {len(v)}", "Connection: keep-alive", version="1.0"), v, a.ask()]
    ],
    "a client that leaves": lambda a, v: [[a.announce(v + v), v, _LEAVE], [a.ask()]],
}


@asynccontextmanager
async def _plain(mirror: Mirror, _: Path) -> AsyncIterator[Client]:
    host, port = mirror.url.removeprefix("http://").split(":")
    client = Client(await asyncio.open_connection(host, int(port)))
    yield client
    client.writer.close()


@asynccontextmanager
async def _over_tls(mirror: Mirror, directory: Path) -> AsyncIterator[Client]:
    host, _, port = mirror.url.removeprefix("http://").partition(":")
    context = ssl.create_default_context(cafile=str(directory / "ca.pem"))
    client = Client(await asyncio.open_connection(host, int(port), ssl=context))
    await client.ask(request("/healthz"))  # else the first segments come with the handshake
    yield client
    client.writer.close()


@asynccontextmanager
async def _inside(mirror: Mirror, directory: Path) -> AsyncIterator[Client]:
    name = "registry-1.docker.io"
    async with connected_to_proxy(mirror) as raw:
        await Raw.connect(raw, f"{name}:443")
        await raw.start_tls(trusting(directory / "cache"), name)
        yield Client((raw.reader, raw.writer))


@dataclass(frozen=True)
class Way:
    """How clients reach the mirror."""

    connected: Callable[[Mirror, Path], AbstractAsyncContextManager[Client]]
    server: dict[str, object]
    fields: tuple[str, ...] = ()
    host: str = "mirror"

    def request(self, path: str, *fields: str) -> bytes:
        return request(path, *self.fields, *fields, host=self.host)


WAYS = {
    "plain": Way(_plain, {}),
    "behind a proxy": Way(
        _plain, {"trusted_proxies": ["127.0.0.1"]}, ("X-Forwarded-For: 192.0.2.1",)
    ),
    "over TLS": Way(_over_tls, {"tls_certificate": "cert.pem", "tls_key": "key.pem"}),
    "inside the proxy": Way(_inside, {}, host="registry-1.docker.io"),
}


def _issue(directory: Path) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    authority.cert_pem.write_to_path(str(directory / "ca.pem"))
    certificate.cert_chain_pems[0].write_to_path(str(directory / "cert.pem"))
    certificate.private_key_pem.write_to_path(str(directory / "key.pem"))


async def _attack(client: Client, segments: Segments, last: bytes) -> None:
    """Send the segments one by one; read until the connection ends."""
    try:
        async with limit():
            for segment in [*segments, last]:
                if segment == _LEAVE:
                    client.writer.transport.abort()
                    return
                client.writer.write(segment)
                for _ in range(10):  # the mirror runs on this loop: it reads the segment meanwhile
                    await asyncio.sleep(0)
            await client.reader.read()
    except ConnectionError:  # the mirror has ended it before
        pass


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
async def test_a_victim_gets_what_it_asks_for(tmp_path, upstream: FakeRegistry, way: Way):
    upstream.add_image(REPO, APP, "1")
    upstream.add_image(REPO, EVIL, "evil")
    _issue(tmp_path)
    server = {
        key: str(tmp_path / value) if key.startswith("tls") else value
        for key, value in way.server.items()
    }
    wanted = {
        f"/v2/{REPO}/manifests/{APP.digest}": APP.manifest,
        f"/v2/{REPO}/manifests/1": APP.manifest,
        f"/v2/{REPO}/blobs/{APP.digests[1]}": APP.blobs[1],
    }
    evil = f"/v2/{REPO}/manifests/{EVIL.digest}"
    last = way.request("/healthz", "Connection: close", "X-Long: " + "x" * 2000)
    wrong = []
    async with running(
        tmp_path / "cache",
        {"docker.io": upstream.url},
        server=server,
        proxy={"listen": "127.0.0.1:0"},
        tags={"max_age": "1h"},
    ) as mirror:
        async with way.connected(mirror, tmp_path) as client:
            for path in (*wanted, evil):  # from now on their answers are hits
                await client.ask(way.request(path))
        for name, attack in ATTACKS.items():
            attacker = Attacker(evil, (*way.fields, f"User-Agent: {name}"), way.host)
            for path, body in wanted.items():
                victim = way.request(path, f"User-Agent: {name}")
                for segments in attack(attacker, victim):
                    async with way.connected(mirror, tmp_path) as client:
                        await _attack(client, segments, last)
                for _ in range(3):  # worked out, perhaps; then repeated
                    async with way.connected(mirror, tmp_path) as client:
                        answer = await client.ask(victim)
                    if answer.partition(b"\r\n\r\n")[2] != body:
                        wrong.append((name, path, answer[:60]))
    assert wrong == []
