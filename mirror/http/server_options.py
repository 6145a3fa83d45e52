"""What receives clients: where requests go, who gets in, who is believed, how many at once."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from aiohttp import web

from mirror.http.admission import Admission
from mirror.http.forwarded import Proxies
from mirror.http.response_cache import ResponseCache

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class Handlers(Protocol):
    """The table of routes."""

    def handler(self, request: web.BaseRequest) -> Handler:
        """The handler of a request."""


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """Connections of all clients and of one address; seconds one may wait for a request.

    ``drain_seconds``: how long what is being sent may take when the mirror stops.
    """

    connections: int
    connections_per_client: int
    idle_seconds: float
    drain_seconds: float


class Requests:
    """The requests that are being answered, so that the end of the last one can be waited for."""

    def __init__(self) -> None:
        self._count = 0
        self._none = asyncio.Event()
        self._none.set()

    @contextmanager
    def one(self) -> Iterator[None]:
        """A request, while it is being answered."""
        self._count += 1
        self._none.clear()
        try:
            yield
        finally:
            self._count -= 1
            if not self._count:
                self._none.set()

    async def over(self) -> None:
        """Wait until there is none."""
        await self._none.wait()


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """All that a server asks about a request; made of one configuration, and whole for a request.

    What is answered from ``table`` is what was answered before; None: nothing is.  ``proxy`` has
    the handlers of what comes in by the proxy's port, where there is one.
    """

    routes: Handlers
    admission: Admission
    proxies: Proxies
    limits: ServerLimits
    table: ResponseCache | None
    requests: Requests
    proxy: Handlers | None = None
