"""Very many clients that shake no hands: they cost little memory, and leave room for others."""

import asyncio
import contextlib
import resource
import socket
import ssl
import sys
from collections.abc import AsyncIterator

import pytest
import trustme

from tests.peers.mirror import MirrorProcess
from tests.peers.process import Process, accepts, free_port
from tests.proxy.clients import trusting
from tests.waiting import limit

pytestmark = [pytest.mark.long]

HOST = "registry-1.docker.io"
CONNECT = f"CONNECT {HOST}:443 HTTP/1.1\r\nHost: {HOST}:443\r\n\r\n".encode()
ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"
TLS_FILES = {"tls_certificate": "chain.pem", "tls_key": "key.pem"}
MIB = 1024  # KiB
MOST = 200 * MIB


def hello() -> bytes:
    """What a client says first."""
    outgoing = ssl.MemoryBIO()
    tls = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=HOST)
    with contextlib.suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


#: What comes after the answer to the CONNECT, and what comes with the CONNECT itself.
FLOODS = {
    "silent": (b"", b""),
    "one byte": (b"\x16", b""),
    "half a handshake": (hello(), b""),
    "at once": (b"", hello()),
    "much": (b"\x16\x03\x01\xff\xff" + b"x" * 200_000, b""),
    "much at once": (b"", b"\x16\x03\x01\xff\xff" + b"x" * 200_000),
}


def peak(pid: int) -> int:
    """The most memory a process has had, in KiB."""
    with open(f"/proc/{pid}/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


@pytest.fixture
def many_files():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
def office(tmp_path, many_files):
    proxy = free_port()
    extra = f'[proxy]\nlisten = "127.0.0.1:{proxy}"\n[limits]\nconnections_per_client = 2000\n'
    upstreams = {"docker.io": "http://127.0.0.1:9"}
    mirror = MirrorProcess(tmp_path, upstreams, extra, measured=False)
    mirror.start()
    yield mirror, proxy
    mirror.kill()


@contextlib.asynccontextmanager
async def connected(port: int, early: bytes) -> AsyncIterator[asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(CONNECT + early)
        async with limit():
            assert await reader.readuntil(b"\r\n\r\n") == ESTABLISHED
        yield writer
    finally:
        writer.transport.abort()


async def ping(port: int, context: ssl.SSLContext, address: str) -> bytes:
    """The status line of a whole request through the proxy, from an address of the loopback."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=(address, 0))
    writer.write(CONNECT)
    assert await reader.readuntil(b"\r\n\r\n") == ESTABLISHED
    await writer.start_tls(context, server_hostname=HOST)
    writer.write(f"GET /v2/ HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n".encode())
    answer = await reader.readline()
    writer.transport.abort()
    return answer


@pytest.mark.parametrize("kind", FLOODS)
async def test_connections_without_a_handshake_cost_little_memory(tmp_path, office, kind):
    mirror, port = office
    later, early = FLOODS[kind]
    async with contextlib.AsyncExitStack() as stack:
        for count in (300, 700):
            for _ in range(count):
                writer = await stack.enter_async_context(connected(port, early))
                writer.write(later)
            async with limit():
                answer = await ping(port, trusting(tmp_path / "cache"), "127.0.0.2")
            assert answer == b"HTTP/1.1 200 OK\r\n"
            print(f"{kind}, {count} more: {peak(mirror.pid) / MIB:.0f} MiB")
        assert peak(mirror.pid) <= MOST


async def test_connections_that_have_shaken_hands_cost_little_memory(tmp_path, office):
    mirror, port = office
    context = trusting(tmp_path / "cache")
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(500):
            writer = await stack.enter_async_context(connected(port, b""))
            await writer.start_tls(context, server_hostname=HOST)
        print(f"{peak(mirror.pid) / MIB:.0f} MiB")
        assert peak(mirror.pid) <= MOST


@pytest.mark.parametrize("kind", FLOODS)
async def test_neither_do_those_at_the_mirrors_own_port_with_tls(tmp_path, many_files, kind):
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    issued.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    issued.cert_chain_pems[0].write_to_path(str(tmp_path / "chain.pem"))
    tls = (f"{name} = {str(tmp_path / file)!r}" for name, file in TLS_FILES.items())
    port = free_port()
    server = "\n".join(tls)
    own = f'listen = ["127.0.0.1:{port}", "unix:{tmp_path}/own.sock"]'
    config = tmp_path / "mirror.toml"
    config.write_text(
        f"[server]\n{own}\n{server}\n[limits]\nconnections_per_client = 2000\n"
        f"[cache]\ndirectory = {str(tmp_path / 'cache')!r}\n"
    )
    command = [sys.executable, "-m", "mirror", "serve", "--config", str(config)]
    mirror = Process(command, tmp_path / "log")
    try:
        mirror.wait_until(lambda: accepts(port))
        context = ssl.create_default_context()
        authority.configure_trust(context)
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(1000):
                raw = stack.enter_context(socket.create_connection(("127.0.0.1", port)))
                raw.setblocking(False)
                raw.send(b"".join(FLOODS[kind]))
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", port, ssl=context, local_addr=("127.0.0.2", 0)
            )
            writer.write(b"GET /v2/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            async with limit():
                assert (await reader.read()).startswith(b"HTTP/1.1 200 OK\r\n")
            writer.close()
            await writer.wait_closed()
            print(f"{kind}: {peak(mirror.pid) / MIB:.0f} MiB")
            assert peak(mirror.pid) <= MOST
    finally:
        mirror.kill()
