"""A worker stays small, whatever crowds of clients make it remember or hold."""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from tests.fakes import FakeRegistry, random_bytes
from tests.fakes.content import OCI_INDEX, digest_of
from tests.peers.mirror import MirrorProcess
from tests.waiting import limit

pytestmark = [pytest.mark.e2e, pytest.mark.long]

MIB = 1 << 20
MOST = 200 * MIB
APP = "/v2/library/app"


class Verbose(FakeRegistry):
    """Answers every listing with as many bytes as told, another one for each query."""

    size = 0

    async def _tags(self, request, repo, *_):
        return self._listing(request, {"name": repo, "tags": []})

    async def _referrers(self, request, *_):
        return self._listing(request, {"schemaVersion": 2, "mediaType": OCI_INDEX})

    def _listing(self, request, said) -> web.Response:
        body = json.dumps({**said, "query": request.query_string, "manifests": []})
        padding = b" " * (self.size - len(body))
        return web.Response(body=body.encode() + padding, content_type="application/json")


@pytest.fixture
async def upstream() -> AsyncIterator[Verbose]:
    async with Verbose() as registry:
        yield registry


def most_memory(pid: int) -> int:
    """VmHWM (proc_pid_status(5)), in bytes."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


@asynccontextmanager
async def small(
    directory: Path, upstream: FakeRegistry, *, patience: bool = True
) -> AsyncIterator[MirrorProcess]:
    """A mirror that must not have taken more than a worker may when the context is over."""
    patient = '[limits]\nqueue_timeout = "10m"\n'  # as long as a busy machine may take
    upstreams = {"docker.io": upstream.url}
    mirror = MirrorProcess(directory, upstreams, patient if patience else "", measured=False)
    await asyncio.to_thread(mirror.start)
    try:
        before = most_memory(mirror.pid)
        yield mirror
        most = most_memory(mirror.pid)
        print(f"{before / MIB:.0f} MiB before, at most {most / MIB:.0f} MiB")
        assert most <= MOST
    finally:
        await asyncio.to_thread(mirror.terminate)


async def answers(mirror: MirrorProcess, paths: list[str], method: str = "GET") -> list[int]:
    """The statuses of all paths, asked for at once."""
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:

        async def ask(path: str) -> int:
            async with session.request(method, mirror.url + path) as answer:
                async for _ in answer.content.iter_chunked(64 * 1024):
                    pass
                return answer.status

        return await asyncio.gather(*map(ask, paths))


async def test_900_clients_that_send_bodies_which_do_not_end(tmp_path, upstream):
    async def body(writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):  # the answer ends the connection
            for _ in range(15):
                writer.write(bytes(65_536))
                await writer.drain()

    async with small(tmp_path, upstream) as mirror:
        place = f"POST {APP}/blobs/uploads/ HTTP/1.1\r\nHost: x\r\nContent-Length: {MIB}\r\n\r\n"
        host, _, port = mirror.url.removeprefix("http://").partition(":")
        clients = [await asyncio.open_connection(host, int(port)) for _ in range(900)]
        for _, writer in clients:
            writer.write(place.encode())
        await asyncio.gather(*(body(writer) for _, writer in clients))
        async with limit():
            answered = await asyncio.gather(*(reader.readline() for reader, _ in clients))
        assert {line.split()[1] for line in answered} == {b"405"}
        for _, writer in clients:
            writer.close()


async def test_many_listings_of_250_kb(tmp_path, upstream):
    upstream.size = 250_000
    async with small(tmp_path, upstream) as mirror:
        paths = [f"{APP}/tags/list?last={number}" for number in range(400)]
        statuses = await answers(mirror, paths)
        assert set(statuses) == {200}
        assert set(await answers(mirror, paths[:10])) == {200}


async def test_many_tag_names(tmp_path, upstream):
    digest = upstream.add_manifest("library/app", _index(1000), OCI_INDEX, "1")
    for number in range(2000):
        upstream.tags["library/app", f"tag-{number}"] = digest
    async with small(tmp_path, upstream) as mirror:
        for start in (0, 1000):
            names = range(start, start + 1000)
            paths = [f"{APP}/manifests/{'tag' if n % 2 else 'no-tag'}-{n}" for n in names]
            statuses = await answers(mirror, paths)
            assert set(statuses) == {200, 404}
        assert await answers(mirror, [f"{APP}/manifests/1"]) == [200]


async def test_many_referrers_queries(tmp_path, upstream):
    upstream.size = 30_000
    async with small(tmp_path, upstream) as mirror:
        subject = digest_of(b"subject")
        wide = "x" * 3000
        paths = [f"{APP}/referrers/{subject}?artifactType={wide}{n}" for n in range(1000)]
        assert set(await answers(mirror, paths)) == {200}


@pytest.mark.parametrize("count", [1, 40], ids=["one manifest", "many manifests"])
async def test_500_slow_readers_of_manifests_of_4_mb(tmp_path, upstream, count):
    """Each has got its first bytes or a 503, and takes no more."""
    digests = [
        upstream.add_manifest("library/app", _index(4_000_000, number), OCI_INDEX)
        for number in range(count)
    ]
    async with small(tmp_path, upstream, patience=count == 1) as mirror, AsyncExitStack() as stack:
        first = [f"{APP}/manifests/{digest}" for digest in digests]
        for path in first:
            assert await answers(mirror, [path]) == [200]
        readers = [
            stack.enter_context(await slow_reader(mirror, first[n % count])) for n in range(500)
        ]
        begun = await asyncio.gather(*map(first_bytes, readers))
        print(f"{begun.count(200)} are answered, {begun.count(503)} are told to come again")
        assert set(begun) <= {200, 503}
        assert begun.count(200) == 500 or count > 1
        # Small answers are for all, and large ones that fit.
        assert await answers(mirror, ["/v2/"]) == [200]


def _index(size: int, number: int = 0) -> bytes:
    """An index of about that size, with little in it for a parser."""
    padding = random_bytes(size // 2, number).hex()
    body = {
        "schemaVersion": 2,
        "mediaType": OCI_INDEX,
        "manifests": [],
        "annotations": {"x": padding},
    }
    return json.dumps(body).encode()


async def slow_reader(mirror: MirrorProcess, path: str) -> socket.socket:
    reader = socket.socket()
    reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    reader.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(reader, ("127.0.0.1", mirror.port))
    await loop.sock_sendall(reader, f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    return reader


async def first_bytes(reader: socket.socket) -> int:
    async with limit():
        head = await asyncio.get_running_loop().sock_recv(reader, 12)
    return int(head.split()[1])
