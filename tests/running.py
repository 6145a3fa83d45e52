"""A mirror to test: in this process where speed matters, and a client for it."""

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from multidict import CIMultiDictProxy
from yarl import URL

from mirror.config import Config, load
from mirror.server import serving
from mirror.server.listeners import Purpose
from mirror.server.shared_state import moment
from tests.waiting import limit

_SAMPLE = re.compile(r"(\w+)(?:\{(.*)\})? (\S+)")


@dataclass(frozen=True)
class Answer:
    status: int
    headers: CIMultiDictProxy[str]
    body: bytes


@dataclass(frozen=True)
class Mirror:
    """A running mirror."""

    url: str
    session: aiohttp.ClientSession
    reload: Callable[[Config], Awaitable[None]]
    proxy: str = ""  # the address of its proxy's port, where it has one

    async def get(self, path: str, method: str = "GET", **headers: str) -> Answer:
        """Ask for a path exactly as given; a broken body raises as aiohttp does."""
        url = URL(self.url + path, encoded=True)
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        async with self.session.request(method, url, headers=fields) as response:
            return Answer(response.status, response.headers, await response.read())

    async def metrics(self) -> dict[str, float]:
        """Each sample of /metrics by name and labels as they stand there."""
        text = (await self.get("/metrics")).body.decode()
        matches = (_SAMPLE.fullmatch(line) for line in text.splitlines())
        return {
            f"{found[1]}{{{found[2]}}}" if found[2] else found[1]: float(found[3])
            for found in matches
            if found
        }


async def eventually(mirror: Mirror, sample: str, value: float) -> None:
    """Wait for a figure that is counted after the client has its bytes."""
    async with limit():
        while (await mirror.metrics()).get(sample) != value:
            await asyncio.sleep(0.01)


def configured(directory: Path, upstreams: Mapping[str, Any], **sections: Any) -> Config:
    """The configuration of a mirror on a free port, with its cache in ``directory``.

    ``upstreams`` maps names to urls or tables; other sections are given as in the file.
    """
    tree: dict[str, Any] = {
        "server": {"listen": "127.0.0.1:0", "drain": "1s", **sections.pop("server", {})},
        "cache": {"directory": str(directory), "min_free": "0", **sections.pop("cache", {})},
        "upstreams": {
            name: {"url": table} if isinstance(table, str) else table
            for name, table in upstreams.items()
        },
        **sections,
    }
    return load(None, tree)


@asynccontextmanager
async def running(
    directory: Path, upstreams: Mapping[str, Any], **sections: Any
) -> AsyncIterator[Mirror]:
    """Run a mirror in this process, ``configured`` like that; its rules wait by a ``clock``.

    ``stopping`` is an event: set, the mirror is told that it ends soon.
    """
    clock, stopping = sections.pop("clock", moment), sections.pop("stopping", asyncio.Event())
    config = configured(directory, upstreams, **sections)
    async with (
        serving(config, stopping, clock) as mirror,
        aiohttp.ClientSession(auto_decompress=False) as session,
    ):
        url = f"http://{mirror.listeners[0].address}"
        proxies = [
            f"http://{each.address}" for each in mirror.listeners if each.purpose is Purpose.PROXY
        ]
        yield Mirror(url, session, mirror.reload, "".join(proxies))
