"""The control socket of a process: the registry API without admission, and the operator's commands.

Whoever may open the socket owns the cache, so nobody is asked who they are.  What they pull is
logged, and asked of upstream like anything else, but counts for none of the figures of clients: a
cache that is warmed up has saved nobody anything yet.
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

from mirror.api.control import Commands, ControlRoutes
from mirror.http.admission import Admission
from mirror.http.exchange import AccessRecord
from mirror.http.forwarded import Proxies
from mirror.http.server import Server
from mirror.http.server_options import ServerOptions
from mirror.logs import AccessLog
from mirror.server.control_sockets import ControlSocket, stand
from mirror.store.local.opening import kept

_LOOK_SECONDS: Final = 5.0
#: Clients have ``drain``; a command that is broken off is given again.
_SHUTDOWN_SECONDS: Final = 1.0
_BACKLOG: Final = 128

_log = logging.getLogger(__name__)


@asynccontextmanager
async def opened_control(
    directory: Path, port: ServerOptions, commands: Commands
) -> AsyncIterator[Callable[[ServerOptions], None]]:
    """Take commands while the context is open, as long as there is a ``directory`` to do it in.

    ``port`` is what receives clients; what it serves is served here too.  Yields what is to be
    told of another one.
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
    """Writes requests into the log, and counts none of them."""

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
    """The socket of this process, opened again where its file is gone."""

    def __init__(self, directory: Path, runner: web.ServerRunner) -> None:
        self._directory = directory
        self._runner = runner
        self._standing: ControlSocket | None = None
        self._site: web.SockSite | None = None
        self._missed = False

    async def stay_open(self) -> None:
        """Look again and again whether the socket is in its place."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            await self.ensure()

    async def ensure(self) -> None:
        """Open the socket where it is not; the log says once that it cannot be."""
        if self._standing is not None and self._standing.in_place():
            return
        await self.shut()
        try:
            standing = asyncio.to_thread(stand, self._directory, os.getpid())
            self._standing = await kept(standing, ControlSocket.withdraw)
        except OSError as error:
            if not self._missed:
                _log.warning(
                    "no control socket in %s: %s; mirror ls, rm, stats and warm do without",
                    self._directory,
                    error.strerror,
                )
            self._missed = True
            return
        self._missed = False
        self._site = web.SockSite(self._runner, self._standing.raw, backlog=_BACKLOG)
        await self._site.start()

    async def shut(self) -> None:
        """Take no more commands, and remove the socket."""
        site, self._site = self._site, None
        if site is not None:
            await site.stop()
        standing, self._standing = self._standing, None
        if standing is not None:
            standing.withdraw()
