"""The control socket of a process: the registry API without admission, and the operator's commands.

File permissions protect the socket: a client that can open it owns the cache, so it is not
authenticated.  Its pulls are logged and go upstream like any others, but do not count in client
metrics: warming a cache saves no traffic yet.
"""

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

from aiohttp import web

from mirror.access_log import AccessLog
from mirror.api.control import Commands, ControlRoutes
from mirror.http.admission import Admission
from mirror.http.exchange import AccessRecord
from mirror.http.forwarded import Proxies
from mirror.http.server import Server
from mirror.http.server_options import ServerOptions
from mirror.server.control_sockets import ControlSocket, stand
from mirror.threads import opened_or_closed

_LOOK_SECONDS: Final = 5.0
#: Clients have ``drain``; an operator can repeat an interrupted command.
_SHUTDOWN_SECONDS: Final = 1.0
_BACKLOG: Final = 128

_log = logging.getLogger(__name__)


@asynccontextmanager
async def opened_control(
    directory: Path, port: ServerOptions, commands: Commands
) -> AsyncIterator[Callable[[ServerOptions], None]]:
    """Take commands while the context is open, as long as ``directory`` can be used.

    ``port`` holds the options of the server for clients; the control socket serves the same routes.
    Yields a function to call with new options after a reload.
    """

    def beside(port: ServerOptions) -> ServerOptions:
        routes = ControlRoutes(port.routes, commands)
        everyone, nobody = Admission([], None), Proxies([], False)
        limits = replace(port.limits, drain_seconds=_SHUTDOWN_SECONDS)
        return ServerOptions(routes, everyone, nobody, limits, None, port.requests)

    server = Server(beside(port), _OperatorsLog(AccessLog()))
    runner = web.ServerRunner(server)
    await runner.setup()
    door = _ControlListener(directory, runner)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(runner.cleanup)
        stack.push_async_callback(door.shut)
        await door.ensure()
        looking = asyncio.create_task(door.stay_open(), name="control")
        stack.callback(looking.cancel)
        yield lambda port: server.receive_by(beside(port))


class _OperatorsLog:
    """Logs requests, and does not count them."""

    def __init__(self, log: AccessLog) -> None:
        self._log = log

    def request_ended(self, ending: AccessRecord) -> None:
        self._log.request_ended(replace(ending, client="operator"))

    def repeated(
        self, ending: AccessRecord, used: Callable[[], None]
    ) -> Callable[[str, float], None]:
        def ended(_: str, seconds: float) -> None:
            used()
            self.request_ended(replace(ending, seconds=seconds))

        return ended


class _ControlListener:
    """The control socket of this process; reopened when its file is gone."""

    def __init__(self, directory: Path, runner: web.ServerRunner) -> None:
        self._directory = directory
        self._runner = runner
        self._standing: ControlSocket | None = None
        self._site: web.SockSite | None = None
        self._missed = False

    async def stay_open(self) -> None:
        """Check at intervals that the socket file is still there."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            await self.ensure()

    async def ensure(self) -> None:
        """Open the socket if its file is missing; log a failure once."""
        if self._standing is not None and self._standing.in_place():
            return
        await self.shut()
        try:
            standing = asyncio.to_thread(stand, self._directory, os.getpid())
            self._standing = await opened_or_closed(standing, ControlSocket.withdraw)
        except OSError as error:
            if not self._missed:
                _log.warning(
                    "no control socket in %s: %s; mirror ls, rm, stats and warm work without it",
                    self._directory,
                    error.strerror,
                )
            self._missed = True
            return
        self._missed = False
        self._site = web.SockSite(self._runner, self._standing.raw, backlog=_BACKLOG)
        await self._site.start()

    async def shut(self) -> None:
        """Stop taking commands, and remove the socket."""
        site, self._site = self._site, None
        if site is not None:
            await site.stop()
        standing, self._standing = self._standing, None
        if standing is not None:
            standing.withdraw()
