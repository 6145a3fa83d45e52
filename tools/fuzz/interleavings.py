"""Two mirrors with the same content, one with ``[server] hot``: their responses must be equal.

A case is two connections that send requests of all kinds, cut into segments, in turns.  The mirror
reads each segment separately: the next is sent when the kernel reports that the last was read,
since aiohttp's responses to some malformed streams depend on the segments.
"""

import asyncio
import contextlib
import fcntl
import random
import re
import socket
import struct
import tempfile
import termios
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from mirror.server import serving
from tests.fakes import FakeRegistry, image, random_bytes
from tests.fakes.content import OCI_MANIFEST
from tests.running import configured
from tools.fuzz.findings import Finding, Report

_REPO = "library/app"
_APPS = (image(random_bytes(9000, 1)), image(random_bytes(9000, 2)))
_BLOB = _APPS[0].digests[1]
_TARGETS = (
    *(f"/v2/{_REPO}/manifests/{app.digest}" for app in _APPS),
    *(f"/v2/{_REPO}/manifests/{tag}" for tag in range(len(_APPS))),
    *(f"/v2/{_REPO}/blobs/{app.digests[1]}" for app in _APPS),
    f"/docker.io/v2/{_REPO}/manifests/1",
    f"/v2/{_REPO}/blobs/{_BLOB}?ns=docker.io",
    f"/v2/{_REPO}/manifests/missing",
    "/v2/",
    "/healthz",
)
_FIELDS = (
    "Connection: keep-alive",
    "Content-Length: 0",
    "Range: bytes=5-99",
    "Range: bytes=5-9,20-29",
    f'If-None-Match: "{_BLOB}"',
    "Authorization: Basic bWU6c2VjcmV0",
    "Cookie: a=b",
    f"Accept: {OCI_MANIFEST}",
    "X-Forwarded-For: 192.0.2.1",
)
_UPGRADE = ("Connection: Upgrade", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: YWJj")
#: Each ends its connection.  Requests that only end a body wrongly are left out: aiohttp waits 10 s
#: for the rest.
_ERRORS = (
    b"\0\r\n\r\n",
    b"GET\r\n\r\n",
    b"GET /v2/ HTTP/1.1\r\n\r\n",
    b"GET /v2/ HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    b"GET /v2/ HTTP/1.1\r\nHost: a\r\nNo field\r\n\r\n",
    b"GET /v2/ HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
    b"GET /v2/ HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n",
    b"GET /v2/ HTTP/1.1\r\nHost: a\r\nX-Long: " + b"x" * 9000 + b"\r\n\r\n",
    b"GET /v2/ HTTP/9.9\r\nHost: a\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
)
#: Ends every open connection: too long to complete any unfinished request.
_LAST = (
    b"GET /healthz HTTP/1.1\r\nHost: mirror\r\nConnection: close\r\nX-Long: "
    + b"x" * 4000
    + b"\r\n\r\n"
)
_LEAVE: Final = b""
_DEEP = 40  # number of requests; more than aiohttp reads ahead
_AT_ONCE = 6
_END_SECONDS = 60  # longer than any connection lasts on a busy machine

Pieces = list[bytes]  # parts of one request; the sender may wait between them
Steps = list[tuple[int, bytes]]


def _request(target: str, *fields: str, method: str = "GET", version: str = "1.1") -> bytes:
    return "\r\n".join(
        [f"{method} {target} HTTP/{version}", "Host: mirror", *fields, "", ""]
    ).encode()


@dataclass(frozen=True)
class Case:
    """Requests of the connections, drawn by ``seed``, without the steps in ``dropped``.

    ``number`` is part of every request, so that no other case has cached its responses.
    """

    seed: int
    number: int
    dropped: frozenset[int] = frozenset()

    def steps(self) -> Steps:
        """The segments, each with the number of its connection."""
        rng = random.Random(self.seed)
        drawn = _Drawn(rng, f"User-Agent: {self.number:010}")
        queues = [drawn.segments(), drawn.segments()]
        turns = [number for number, queue in enumerate(queues) for _ in queue]
        if rng.random() < 0.8:
            rng.shuffle(turns)
        steps = [(turn, queues[turn].pop(0)) for turn in turns]
        return [step for at, step in enumerate(steps) if at not in self.dropped]

    def victims(self) -> list[bytes]:
        """Requests that other clients send afterwards, each on its own connection."""
        drawn = _Drawn(random.Random(self.seed), f"User-Agent: {self.number:010}")
        return [drawn.plain(target) for target in drawn.targets]

    def simpler(self) -> Iterator["Case"]:
        """Cases with one step less."""
        count = len(replace(self, dropped=frozenset()).steps())
        for at in sorted(set(range(count)) - self.dropped):
            yield replace(self, dropped=self.dropped | {at})


class _Drawn:
    """Draws requests for few targets: a target that repeats is cached."""

    def __init__(self, rng: random.Random, agent: str) -> None:
        self._rng = rng
        self._agent = agent
        self.targets = rng.sample(_TARGETS, 3)

    def plain(self, target: str = "", *fields: str, method: str = "GET") -> bytes:
        target = target or self._rng.choice(self.targets)
        return _request(target, self._agent, *fields, method=method)

    def segments(self) -> list[bytes]:
        """All segments of one connection."""
        rng = self._rng
        if rng.random() < 0.05:
            items = [[self.plain()] for _ in range(_DEEP)]
        else:
            items = [self._item() for _ in range(rng.randint(1, 8))]
            items += self._ending()
        segments = self._cut(items)
        if rng.random() < 0.1:
            segments = [*segments[: rng.randint(0, len(segments))], _LEAVE]
        return segments

    def _item(self) -> Pieces:
        rng = self._rng
        kind = rng.choice(["plain"] * 8 + ["head", "field", "length", "length", "chunked", "h2c"])
        method = rng.choice(["GET", "GET", "HEAD", "POST"])
        if kind == "head":
            return [self.plain(method="HEAD")]
        if kind == "field":
            return [self.plain("", *rng.sample(_FIELDS, rng.randint(1, 2)))]
        if kind == "length":
            body = self._body()
            expect = ["Expect: 100-continue"] * (rng.random() < 0.2)
            length = f"Content-Length: {len(body)}"
            return [self.plain("", length, *expect, method=method), body]
        if kind == "chunked":
            body = self._body()
            trailer = self._rng.choice([b"", b"X-Trailer: x\r\n"])
            head = self.plain("", "Transfer-Encoding: chunked", method=method)
            return [head, b"%x\r\n" % len(body), body, b"\r\n0\r\n%b\r\n" % trailer]
        if kind == "h2c":
            return [self.plain("", "Connection: Upgrade", "Upgrade: h2c")]
        return [self.plain()]

    def _body(self) -> bytes:
        """A body that looks like a request, two requests, or part of one."""
        body = b"".join(self.plain() for _ in range(self._rng.choice([1, 1, 1, 2])))
        return self._rng.choice([body, body, body, b"x" + body, body[:-3], body[9:]])

    def _ending(self) -> list[Pieces]:
        """The last requests of a connection: later ones are plain, or get no response."""
        kind = self._rng.choice(["", "", "error", "error", "close", "1.0", "websocket", "CONNECT"])
        target = self._rng.choice(self.targets)
        if kind == "error":
            return [[self._rng.choice(_ERRORS)]]
        if kind == "close":
            return [[self.plain("", "Connection: close")]]
        if kind == "1.0":
            return [[_request(target, self._agent, version="1.0")]]
        if kind == "websocket":
            upgrade = self.plain("", *_UPGRADE, "Upgrade: websocket")
            return [[upgrade], *([self.plain()] for _ in range(3))]
        if kind == "CONNECT":
            return [[_request("a.test:443", self._agent, method="CONNECT")], [self.plain()]]
        return []

    def _cut(self, items: Sequence[Pieces]) -> list[bytes]:
        rng = self._rng
        how = rng.choice(["pieces", "pieces", "pieces", "items", "all", "anywhere"])
        if how == "pieces":
            return [piece for item in items for piece in item]
        if how == "items":
            return [b"".join(item) for item in items]
        data = b"".join(piece for item in items for piece in item)
        if how == "all" or len(data) < 2:
            return [data]
        cuts = sorted(rng.sample(range(1, len(data)), min(len(data) - 1, rng.randint(1, 12))))
        return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]


@dataclass(frozen=True)
class _Pair:
    """Sockets of a mirror with cached responses and of one without."""

    hot: str
    cold: str

    async def differs(self, case: Case) -> str:
        """The difference between the responses; empty if there is none."""
        steps, victims = case.steps(), case.victims()
        hot, cold = await asyncio.gather(*(_played(path, steps) for path in (self.hot, self.cold)))
        if hot != cold:
            return f"hot:  {hot}\ncold: {cold}"
        for victim in victims * 2:
            alone = [(0, victim)]
            hot, cold = await asyncio.gather(
                *(_played(path, alone) for path in (self.hot, self.cold))
            )
            if hot != cold:
                return f"afterwards {victim!r}\nhot:  {hot}\ncold: {cold}"
        return ""


async def _played(path: str, steps: Steps) -> list[bytes]:
    """The responses on each connection until it ends; nothing if the client closed it."""
    loop = asyncio.get_running_loop()
    numbers = {number for number, _ in steps}
    connections = {number: socket.socket(socket.AF_UNIX) for number in numbers}
    readers = {}
    try:
        async with asyncio.timeout(_END_SECONDS):
            for number, connection in sorted(connections.items()):
                connection.setblocking(False)
                await loop.sock_connect(connection, path)
                readers[number] = asyncio.create_task(_read(connection))
            for number, segment in [*steps, *((number, _LAST) for number in sorted(readers))]:
                if number not in readers:
                    continue
                if segment == _LEAVE:
                    await _over(readers.pop(number))
                    connections[number].close()
                else:
                    await _send(connections[number], segment)
            return [await reader for _, reader in sorted(readers.items())]
    except TimeoutError:
        return [b"a connection did not end"]
    finally:
        for reader in readers.values():
            await _over(reader)
        for connection in connections.values():
            connection.close()


async def _send(connection: socket.socket, segment: bytes) -> None:
    """Send a segment, and wait until the mirror has read it."""
    with contextlib.suppress(ConnectionError):  # the mirror has closed it
        await asyncio.get_running_loop().sock_sendall(connection, segment)
    while struct.unpack("i", fcntl.ioctl(connection, termios.TIOCOUTQ, b"\0" * 4))[0]:
        await asyncio.sleep(0)


async def _read(connection: socket.socket) -> bytes:
    answered = b""
    with contextlib.suppress(ConnectionError):
        while data := await asyncio.get_running_loop().sock_recv(connection, 1 << 20):
            answered += data
    answered = re.sub(rb"Date: [^\r]+", b"Date: now", answered)
    for boundary in re.findall(rb"boundary=(\w+)", answered):  # random for each response
        answered = answered.replace(boundary, b"drawn")
    return answered


async def _over(task: asyncio.Task[bytes]) -> None:
    task.cancel()
    await asyncio.wait([task])


@asynccontextmanager
async def _pair() -> AsyncIterator[_Pair]:
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        directory = Path(name)
        async with FakeRegistry() as upstream, contextlib.AsyncExitStack() as stack:
            for tag, app in enumerate(_APPS):
                upstream.add_image(_REPO, app, str(tag))
            paths = []
            for hot in (True, False):
                path = str(directory / f"{hot}.sock")
                config = configured(
                    directory / str(hot),
                    {"docker.io": upstream.url},
                    server={"listen": f"unix:{path}", "hot": hot},
                    tags={"max_age": "1d", "negative_max_age": "1d"},
                )
                await stack.enter_async_context(serving(config, asyncio.Event()))
                await _warm(path)
                paths.append(path)
            yield _Pair(*paths)


async def _warm(path: str) -> None:
    """Request every target until no response needs upstream."""
    before: list[list[bytes]] = []
    async with asyncio.timeout(_END_SECONDS):
        while True:
            now = [await _played(path, [(0, _request(target))]) for target in _TARGETS]
            if now == before:
                return
            before = now
            await asyncio.sleep(0.05)


async def _run(report: Report, seed: int, rounds: float, seconds: float) -> None:
    rng, stop = random.Random(seed), time.monotonic() + seconds
    async with _pair() as pair:
        while report.cases < rounds and time.monotonic() < stop and not report.findings:
            numbers = range(report.cases, report.cases + _AT_ONCE)
            cases = [Case(rng.getrandbits(32), number) for number in numbers]
            found = await asyncio.gather(*(pair.differs(case) for case in cases))
            report.cases += len(cases)
            for case, why in zip(cases, found, strict=True):
                if why:
                    report.findings.append(await _reduced(pair, case, why))


async def _reduced(pair: _Pair, case: Case, why: str) -> Finding:
    """The smallest case with the same difference; each trial has its own number."""
    for simpler in case.simpler():
        another = replace(simpler, number=random.getrandbits(32))
        if found := await pair.differs(another):
            return await _reduced(pair, another, found)
    return Finding(f"{case!r}\n{case.steps()!r}", why)


def try_interleavings(
    seed: int, *, rounds: float = float("inf"), seconds: float = float("inf")
) -> Report:
    """Compare the mirrors, for at most this number of cases and of seconds."""
    report = Report("interleavings")
    asyncio.run(_run(report, seed, rounds, seconds))
    return report


def fuzz_interleavings(seconds: float, seed: int) -> list[Report]:
    """Compare a mirror with cached responses to one without."""
    return [try_interleavings(seed, seconds=seconds)]
