"""The control socket of a process: the registry API without admission, and the operator's commands.

File permissions protect the socket: a client that can open it owns the cache, so it is not
authenticated.  Its pulls are logged and go upstream like any others, but do not count in client
metrics: warming a cache saves no traffic yet.
"""

import asyncio
import contextlib
import errno
import fcntl
import logging
import os
import socket
import stat
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import aiohttp
from aiohttp import web

from mirror.access_log import AccessLog
from mirror.api.v1 import Commands, ControlRoutes
from mirror.descriptor import Descriptor
from mirror.http.admission import Admission
from mirror.http.exchange import AccessRecord, Exchange
from mirror.http.forwarded import Proxies
from mirror.http.server import Server
from mirror.http.server_options import ServerOptions
from mirror.threads import opened_or_closed

_SUFFIX: Final = ".sock"
_MOST_BYTES: Final = 100  # length of a path; every system's sun_path has room for this many
_DESCRIPTORS: Final = Path("/proc/self/fd")  # Linux
_PROBE_SECONDS: Final = 1.0
CONNECT_SECONDS: Final = 10.0
_LOOK_SECONDS: Final = 5.0
#: Clients have ``drain``; an operator can repeat an interrupted command.
_SHUTDOWN_SECONDS: Final = 1.0
_BACKLOG: Final = 128
_OPERATOR: Final = "operator"

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ControlDirectory:
    """An open directory of sockets; the caller closes it."""

    path: Path
    fd: Descriptor

    @classmethod
    def open(cls, path: Path) -> "ControlDirectory":
        """Open a directory.

        Raises:
            OSError: it is missing, or this user may not open it.
        """
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        return cls(path, Descriptor(os.open(path, flags)))

    def close(self) -> None:
        self.fd.close()

    def address(self, name: str) -> str:
        """The address of a socket to bind or connect to; valid while the directory is open.

        Raises:
            OSError: the path is too long for this system.
        """
        plain = str(self.path / name)
        if len(os.fsencode(plain)) <= _MOST_BYTES:
            return plain
        if _DESCRIPTORS.is_dir():  # a short path to the same file
            return f"{_DESCRIPTORS}/{self.fd.fileno()}/{name}"
        raise OSError(errno.ENAMETOOLONG, f"{plain} is too long for the name of a socket")

    def session(self, name: str, silence: float) -> aiohttp.ClientSession:
        """A session with the process of a socket, which may be silent for so many seconds.

        Raises:
            OSError: as of :meth:`address`.
        """
        return aiohttp.ClientSession(
            "http://mirror",  # aiohttp needs a host; the value is not used
            connector=aiohttp.UnixConnector(self.address(name), limit=0),
            timeout=aiohttp.ClientTimeout(
                total=None, sock_connect=CONNECT_SECONDS, sock_read=silence
            ),
            auto_decompress=False,
        )

    def live(self) -> list[str]:
        """Return the names of the sockets on which a process listens; remove the dead ones.

        Raises:
            OSError: the directory cannot be read.
        """
        with self.fd:  # the caller may be cancelled meanwhile, and close the descriptor
            with contextlib.suppress(OSError), self._alone(fcntl.LOCK_NB):
                self.sweep()
            return [name for name in self._names() if self._is_live(name)]

    def sweep(self) -> None:
        """Remove sockets on which no process listens.  The caller must hold the lock.

        Raises:
            OSError: the directory cannot be read or changed.
        """
        for name in self._names():
            if not self._is_live(name):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=self.fd.fileno())

    def _names(self) -> list[str]:
        return sorted(name for name in os.listdir(self.fd.fileno()) if name.endswith(_SUFFIX))

    def _is_live(self, name: str) -> bool:
        address = self.address(name)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(_PROBE_SECONDS)
            try:
                probe.connect(address)
            except (ConnectionRefusedError, FileNotFoundError):
                return False
            except OSError:  # its queue is full, or access is denied: a process has the socket
                return True
            return True

    @contextlib.contextmanager
    def _alone(self, how: int = 0) -> Iterator[None]:
        fcntl.flock(self.fd.fileno(), fcntl.LOCK_EX | how)
        try:
            yield
        finally:
            fcntl.flock(self.fd.fileno(), fcntl.LOCK_UN)

    def _free_name(self, pid: int) -> str:
        """A free name for the socket of a process; two containers may use the same pid."""
        taken, number = set(self._names()), 0
        while (name := f"{pid}.{number}{_SUFFIX}" if number else f"{pid}{_SUFFIX}") in taken:
            number += 1
        return name

    def listen(self, pid: int) -> "ControlSocket":
        """Open the socket of a process, accessible to its owner only.

        Raises:
            OSError: the socket cannot be made.
        """
        with self._alone():
            os.fchmod(self.fd.fileno(), 0o700)
            self.sweep()
            name = self._free_name(pid)
            raw = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                raw.bind(self.address(name))
                os.chmod(name, 0o600, dir_fd=self.fd.fileno())
                raw.listen(_BACKLOG)
                raw.setblocking(False)
                return ControlSocket(self.path / name, raw, os.lstat(self.path / name))
            except OSError:
                raw.close()
                raise


@dataclass(frozen=True, slots=True)
class ControlSocket:
    """A listening socket and its file; ``made`` identifies the file."""

    path: Path
    raw: socket.socket
    made: os.stat_result

    def in_place(self) -> bool:
        """Whether the file exists and still belongs to the socket."""
        try:
            there = self.path.lstat()
        except OSError:
            return False
        return stat.S_ISSOCK(there.st_mode) and os.path.samestat(there, self.made)

    def withdraw(self) -> None:
        if self.in_place():
            with contextlib.suppress(OSError):
                self.path.unlink()
        self.raw.close()


def stand(directory: Path, pid: int) -> ControlSocket:
    """Listen in ``directory``, which is created if its parent exists.

    Raises:
        OSError: the directory or the socket cannot be made.
    """
    directory.mkdir(mode=0o700, exist_ok=True)
    with contextlib.closing(ControlDirectory.open(directory)) as sockets:
        return sockets.listen(pid)


def is_own(name: str) -> bool:
    """Whether a socket is the one of this process."""
    return name.partition(".")[0] == str(os.getpid())


@asynccontextmanager
async def opened_control(
    directory: Path,
    port: ServerOptions,
    commands: Commands,
    log: AccessLog,
    pull_ended: Callable[[AccessRecord], None],
) -> AsyncIterator[Callable[[ServerOptions], None]]:
    """Take commands while the context is open, as long as ``directory`` can be used.

    ``port`` holds the options of the server for clients; the control socket serves the same routes.
    ``pull_ended`` is called for every request.
    Yields a function to call with new options after a reload.
    """

    def beside(port: ServerOptions) -> ServerOptions:
        routes = ControlRoutes(port.routes, commands)
        everyone, nobody = Admission([], None), Proxies([], False)
        limits = replace(port.limits, drain_seconds=_SHUTDOWN_SECONDS)
        return ServerOptions(routes, everyone, nobody, limits, None, port.requests)

    server = Server(beside(port), _OperatorsLog(log, pull_ended))
    runner = web.ServerRunner(server)
    await runner.setup()
    listener = _ControlListener(directory, runner)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(runner.cleanup)
        stack.push_async_callback(listener.shut)
        await listener.ensure()
        looking = asyncio.create_task(listener.stay_open(), name="control")
        stack.callback(looking.cancel)
        yield lambda port: server.receive_by(beside(port))


class _OperatorsLog:
    """Logs requests, and does not count them."""

    def __init__(self, log: AccessLog, pull_ended: Callable[[AccessRecord], None]) -> None:
        self._log = log
        self._pull_ended = pull_ended

    def request_began(self, exchange: Exchange) -> None:
        self._log.request_began(exchange, _OPERATOR)

    def connections_open(self, change: int) -> None:
        """Do nothing: operators are not clients."""

    def request_ended(self, ending: AccessRecord) -> None:
        self._log.request_ended(replace(ending, client=_OPERATOR))
        self._pull_ended(ending)

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
        self._socket: ControlSocket | None = None
        self._site: web.SockSite | None = None
        self._missed = False

    async def stay_open(self) -> None:
        """Check at intervals that the socket file is still there."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS)
            await self.ensure()

    async def ensure(self) -> None:
        """Open the socket if its file is missing; log a failure once."""
        if self._socket is not None and self._socket.in_place():
            return
        await self.shut()
        try:
            opening = asyncio.to_thread(stand, self._directory, os.getpid())
            self._socket = await opened_or_closed(opening, ControlSocket.withdraw)
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
        self._site = web.SockSite(self._runner, self._socket.raw, backlog=_BACKLOG)
        await self._site.start()

    async def shut(self) -> None:
        """Stop taking commands, and remove the socket."""
        site, self._site = self._site, None
        if site is not None:
            await site.stop()
        former, self._socket = self._socket, None
        if former is not None:
            former.withdraw()
