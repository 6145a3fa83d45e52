"""A mirror on a cache directory: the running one, else a temporary one in this process.

So there is one way to pull, verify and store images.  Must not know the requests.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import aiohttp

from mirror.admin.client import lookup_running
from mirror.admin.ownership import check_owner
from mirror.config.model import AccessConfig, Config, ServerConfig
from mirror.config.proxy import ProxyConfig
from mirror.server import serving
from mirror.user_error import UserError


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
