"""What a request is answered with: the options of the server, and how its connection arrived."""

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
        """Return the handler of a request."""


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """Maximum connections of all clients and of one client, and time limits in seconds.

    ``idle_seconds``: how long a connection may wait for its next request.  ``drain_seconds``: how
    long running answers may take when the mirror stops.
    """

    connections: int
    connections_per_client: int
    idle_seconds: float
    drain_seconds: float


class Requests:
    """Counts the requests in progress, so that a reload can wait for the last one."""

    def __init__(self) -> None:
        self._count = 0
        self._none = asyncio.Event()
        self._none.set()

    @contextmanager
    def one(self) -> Iterator[None]:
        """Count one request while the context is open."""
        self._count += 1
        self._none.clear()
        try:
            yield
        finally:
            self._count -= 1
            if not self._count:
                self._none.set()

    async def over(self) -> None:
        await self._none.wait()


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """Everything the server needs to answer a request, from one configuration.

    A request uses the same options from start to end, also during a reload.  ``table`` is the
    response cache, None if it is off.  ``proxy`` has the handlers for the proxy port, if any.
    """

    routes: Handlers
    admission: Admission
    proxies: Proxies
    limits: ServerLimits
    table: ResponseCache | None
    requests: Requests
    proxy: Handlers | None = None


@dataclass(frozen=True, slots=True)
class ConnectionContext:
    """How a connection arrived.

    ``proxy``: on the proxy port, where each request names its server.
    ``upstream``: inside TLS that the mirror terminates in the name of this upstream's registry;
    ``client`` is the address that sent the CONNECT, ``user`` the user whose password it had.
    """

    proxy: bool = False
    upstream: str = ""
    client: str = ""
    user: str = ""


DIRECT = ConnectionContext()
PROXY = ConnectionContext(proxy=True)
