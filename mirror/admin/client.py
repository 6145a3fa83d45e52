"""Commands on a cache directory: sent to the mirror that runs on it, else to a temporary one here.

Knows how to send commands.  Must not know what they mean.  Only the owner of a cache may use it:
the mirror's own user could not read files written by root.
"""

import asyncio
import contextlib
import os
import pwd
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp

from mirror.config.model import AccessConfig, Config, ProxyConfig, ServerConfig
from mirror.oci.errors import lookup_message
from mirror.server import serving
from mirror.server.control import CONNECT_SECONDS, ControlDirectory
from mirror.store.local.layout import Layout
from mirror.user_error import UserError

#: Longest silence during a response; its whole length is unlimited, since it may take a scan of the
#: cache.
_SILENCE_SECONDS: Final = 300.0
_TOLD_SECONDS: Final = 10.0


def check_owner(directory: Path) -> None:
    """Check that root does not write into another user's cache.

    Raises:
        UserError: root would.
    """
    try:
        owner = directory.stat().st_uid
    except OSError:  # it does not exist yet, or opening it will report the error
        return
    if os.geteuid() == 0 != owner:
        name = _name(owner)
        raise UserError(
            f"the cache {directory} is {name}'s, who could not read what root writes there: "
            f"run this as {name}, such as by sudo -u {name}"
        )


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:  # for example a user of a container
        return f"#{uid}"


def user_name() -> str:
    """Return the name of this process's user, for the log of the running mirror."""
    return _name(os.getuid())


@dataclass(frozen=True, slots=True)
class MirrorProcess:
    """One process; ``session`` has its socket as base, for the registry API and for commands."""

    name: str
    session: aiohttp.ClientSession

    async def command(
        self,
        path: str,
        members: Mapping[str, Any] | None = None,
        timeout: float = _SILENCE_SECONDS,  # noqa: ASYNC109  # of aiohttp
    ) -> Any:
        """Send a command, by POST if it has ``members``, and return its result.

        The response may take ``timeout`` seconds to begin, and as many to arrive.

        Raises:
            UserError: the command is refused.
            aiohttp.ClientError, TimeoutError: the process has ended, or does not answer.
        """
        method = "GET" if members is None else "POST"
        limit = aiohttp.ClientTimeout(sock_connect=CONNECT_SECONDS, sock_read=timeout)
        async with self.session.request(method, path, json=members, timeout=limit) as answer:
            async with asyncio.timeout(timeout):  # it is complete before its first byte
                if answer.status != 200:
                    raise UserError(await _refusal(answer))
                return await answer.json()


@dataclass(frozen=True, slots=True)
class Running:
    """The processes of a running mirror; at least one."""

    workers: Sequence[MirrorProcess]

    async def ask(self, path: str, members: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Send a command to one process; to the next one only if the connection failed.

        Raises:
            UserError: the command is refused or interrupted, or no process takes commands.
        """
        for worker in self.workers:
            try:
                answer: dict[str, Any] = await worker.command(path, members)
                return answer
            except aiohttp.ClientConnectorError:
                continue
            except TimeoutError as error:
                text = f"no data for {_SILENCE_SECONDS:.0f} s; the command may still be running"
                raise UserError(f"the running mirror does not answer: {text}") from error
            except aiohttp.ClientError as error:
                raise UserError(f"the running mirror closed the connection: {error}") from error
        raise UserError("the mirror that ran here has just ended; give the command again")

    async def tell(self, path: str, members: Mapping[str, Any]) -> list[Any]:
        """Send a short command to all processes; those that have ended are skipped.

        Raises:
            UserError: a process refuses, or does not answer in time.
        """
        answers = []
        for worker in self.workers:
            try:
                answers.append(await worker.command(path, members, _TOLD_SECONDS))
            except TimeoutError as error:
                raise UserError(f"a process of the mirror ({worker.name}) hangs") from error
            except aiohttp.ClientError:
                continue
        return answers


@asynccontextmanager
async def lookup_running(directory: Path) -> AsyncIterator[Running | None]:
    """The mirror that runs on an absolute cache directory, None if there is none.

    Raises:
        UserError: this user may not access the mirror's control sockets.
    """
    place = Layout(directory).control
    async with AsyncExitStack() as stack:
        try:
            sockets = ControlDirectory.open(place)
        except (FileNotFoundError, NotADirectoryError):
            yield None
            return
        except OSError as error:
            raise UserError(
                f"{place} cannot be opened: {error.strerror}; run this as the mirror's user or root"
            ) from error
        stack.callback(sockets.close)
        workers = [
            MirrorProcess(
                name, await stack.enter_async_context(sockets.session(name, _SILENCE_SECONDS))
            )
            for name in sockets.live()
        ]
        yield Running(workers) if workers else None


async def _refusal(answer: aiohttp.ClientResponse) -> str:
    message = None
    with contextlib.suppress(aiohttp.ClientError):
        message = lookup_message(await answer.read())
    return message or f"the running mirror answers {answer.status}"


@dataclass(frozen=True, slots=True)
class Reached:
    """A mirror that takes requests through ``sessions``, one for each of its processes.

    ``own``: it runs in this process, and ends with the command.
    """

    sessions: Sequence[aiohttp.ClientSession]
    own: bool


@asynccontextmanager
async def reached(config: Config) -> AsyncIterator[Reached]:
    """Reach a mirror on the configured cache directory.

    Raises:
        UserError: none runs and none can be started, or this user may not access it.
    """
    directory = config.cache.directory.absolute()
    async with AsyncExitStack() as stack:
        running = await stack.enter_async_context(lookup_running(directory))
        own = running is None
        if running is None:
            check_owner(directory)
            await stack.enter_async_context(serving(_private(config), asyncio.Event()))
            running = await stack.enter_async_context(lookup_running(directory))
        if running is None:
            raise UserError(
                f"the cache directory {directory} cannot be written to; "
                "choose another with --cache-dir or [cache] directory"
            )
        yield Reached([worker.session for worker in running.workers], own)


def _private(config: Config) -> Config:
    """The same mirror without listeners: it serves only its control socket."""
    server = ServerConfig.model_validate({"drain": "0s", "hot": False})
    unreachable = {
        "server": server.model_copy(update={"listen": ()}),
        "proxy": ProxyConfig(),
        "access": AccessConfig(),
        "warm": (),
    }
    return config.model_copy(update=unreachable)
