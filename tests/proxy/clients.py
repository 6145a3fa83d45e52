"""A client whose proxy the mirror is: raw for the very bytes, or as programs are."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from yarl import URL

from mirror.ca import ensure_authority
from mirror.config.fields import state_directory
from tests.running import Answer, Mirror
from tests.waiting import limit


def trusting(cache: Path) -> ssl.SSLContext:
    """TLS of a client that was told of the mirror's CA."""
    authority = ensure_authority(state_directory(cache), "mirror")
    return ssl.create_default_context(cadata=authority.public_pem().decode())


@dataclass
class Raw:
    """A connection to the proxy's port."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def connect(self, target: str, *fields: str, early: bytes = b"") -> str:
        """CONNECT; the status line and, where it is a refusal, what it says."""
        lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}", *fields, "", ""]
        await self.send("\r\n".join(lines).encode() + early)
        return await self.answer()

    async def answer(self) -> str:
        async with limit():
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
            status = head.partition("\r\n")[0]
            if " 200 " in status:
                assert head == "HTTP/1.1 200 Connection established\r\n\r\n"
                return status
            return f"{status}\n{(await self.reader.read()).decode()}"

    async def start_tls(self, context: ssl.SSLContext, name: str) -> None:
        async with limit():
            await self.writer.start_tls(context, server_hostname=name)

    async def rest(self) -> bytes:
        async with limit():
            return await self.reader.read()


@asynccontextmanager
async def connected(mirror: Mirror) -> AsyncIterator[Raw]:
    url = URL(mirror.proxy)
    raw = Raw(*await asyncio.open_connection(url.host, url.port))
    try:
        yield raw
    finally:
        raw.writer.close()


async def ask(
    mirror: Mirror | str,
    context: ssl.SSLContext,
    url: str,
    method: str = "GET",
    **options: Any,
) -> Answer:
    """Ask as Docker does whose HTTPS_PROXY is the mirror (or at an address); one connection."""
    proxy = mirror if isinstance(mirror, str) else mirror.proxy
    connector = aiohttp.TCPConnector(ssl=context, force_close=True)
    async with (
        aiohttp.ClientSession(connector=connector, auto_decompress=False) as session,
        session.request(
            method,
            URL(url, encoded=True),
            proxy=proxy,
            allow_redirects=False,
            **options,
        ) as response,
    ):
        return Answer(response.status, response.headers, await response.read())
