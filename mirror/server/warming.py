"""Images pulled ahead of time by the mirror itself, on a schedule, in one of its processes.

It is a client of its own control socket, like ``mirror warm``, and takes only a few of the
downloads that may run at once.  Whatever goes wrong is one line in the log and is tried again.
"""

import asyncio
import errno
import logging
import os
import platform as machine
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Final

import aiohttp

from mirror.config.model import Config
from mirror.config.warm import ALL_PLATFORMS, WarmConfig
from mirror.oci.image_name import parse_image
from mirror.oci.platform import Platform
from mirror.registry_client.client import MirrorClient
from mirror.registry_client.plan import EVERYTHING, Wanted
from mirror.registry_client.pull import Pulled, Puller
from mirror.server.control_sockets import ControlDirectory
from mirror.server.images import located_all
from mirror.server.schedule import until_first, until_next
from mirror.store.local.layout import Layout, left_in

_log = logging.getLogger(__name__)

#: Of all downloads that may run at once, so that a client finds room.
_SHARE: Final = 4
_NAMED: Final = 3
_SILENCE_SECONDS: Final = 600.0
#: Looked at so often, a clock that is set is no missed run.
_LOOK_SECONDS: Final = 300.0


class Warming:
    """Goes by the lists of a configuration."""

    def __init__(
        self,
        *,
        first: bool,
        chance: Callable[[], float] = random.random,
        now: Callable[[], datetime] = lambda: datetime.now().astimezone(),
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Of several processes only the ``first`` does."""
        self._first = first
        self._chance = chance
        self._now = now
        self._monotonic = monotonic
        self._config: Config | None = None
        self._tasks: list[asyncio.Task[None]] = []

    def by(self, config: Config) -> None:
        """Go by ``config`` from now on."""
        if not self._first or config == self._config:
            return
        self.close()
        self._config = config
        self._tasks = [
            asyncio.create_task(self._regularly(config, entry), name="warm")
            for entry in config.warm
        ]

    def close(self) -> None:
        """Break off; what has come so far is kept."""
        for task in self._tasks:
            task.cancel()
        self._tasks = []

    async def _regularly(self, config: Config, entry: WarmConfig) -> None:
        failures = 0
        await self._wait(until_first(entry, self._now(), self._chance()))
        while True:
            whole = await _run(config, entry)
            failures = 0 if whole else failures + 1
            await self._wait(until_next(entry, self._now(), failures, self._chance()))

    async def _wait(self, seconds: float) -> None:
        """By the clock on the wall, which goes on while a machine is suspended, or by our own.

        Whichever comes there first: the one on the wall may be set back by a year.
        """
        due, ends = self._now().timestamp() + seconds, self._monotonic() + seconds
        while (left := min(due - self._now().timestamp(), ends - self._monotonic())) > 0:  # noqa: ASYNC110  # clocks tell nobody
            await asyncio.sleep(min(left, _LOOK_SECONDS))


async def _run(config: Config, entry: WarmConfig) -> bool:
    """Pull all that is listed, as far as it can be had; say whether that was all."""
    started = time.monotonic()
    try:
        result = await _pulled(config, entry)
    except (OSError, aiohttp.ClientError) as error:
        _log.warning("images could not be pulled ahead of time: %s", error)
        return False
    except Exception:
        _log.exception("images could not be pulled ahead of time")
        return False
    _tell(result, time.monotonic() - started)
    return not any(pulled.reason for pulled in result)


async def _pulled(config: Config, entry: WarmConfig) -> list[Pulled]:
    wanted, failed = located_all(config, map(parse_image, entry.images))
    directory = config.cache.directory.absolute()
    parallel = min(entry.parallel, max(1, config.limits.downloads // _SHARE))
    async with _own_session(Layout(directory).control) as session:
        puller = Puller(MirrorClient([session]), left_in(directory), _Nobody(), parallel)
        return [*await puller.pull(wanted, _platforms(entry)), *failed]


def _platforms(entry: WarmConfig) -> Sequence[Platform]:
    if ALL_PLATFORMS in entry.platforms:
        return EVERYTHING
    named = [Platform.parse(name) for name in entry.platforms]
    return named or [Platform.of("linux", machine.machine())]


@asynccontextmanager
async def _own_session(place: Path) -> AsyncIterator[aiohttp.ClientSession]:
    """Requests to this very process.

    Raises:
        OSError: it takes none on its control socket.
    """
    meeting = ControlDirectory.open(place)
    try:
        names = await asyncio.to_thread(meeting.live)
        own = [name for name in names if name.partition(".")[0] == str(os.getpid())]
        if not own:
            raise OSError(errno.ENOENT, "this process has no control socket", str(place))
        async with aiohttp.ClientSession(
            "http://mirror",
            connector=aiohttp.UnixConnector(meeting.address(own[0]), limit=0),
            timeout=aiohttp.ClientTimeout(total=None, sock_read=_SILENCE_SECONDS),
            auto_decompress=False,
        ) as session:
            yield session
    finally:
        meeting.close()


def _tell(result: Sequence[Pulled], seconds: float) -> None:
    failed = [pulled for pulled in result if pulled.reason]
    fields: dict[str, object] = {
        "images": len(result),
        "failed": len(failed),
        "fetched_bytes": sum(pulled.fetched for pulled in result),
        "found_bytes": sum(pulled.found for pulled in result),
        "seconds": round(seconds, 1),
    }
    if failed:
        reasons = [f"{pulled.wanted.typed}: {pulled.reason}" for pulled in failed[:_NAMED]]
        fields["reasons"] = "; ".join(reasons)
    _log.log(logging.WARNING if failed else logging.INFO, "warmed", extra=fields)


class _Nobody:
    """Watches nothing: the summary tells of it."""

    def expected(self, images: int) -> None:
        """So many."""

    def planned(self, wanted: Wanted, size: int) -> None:
        """So large."""

    def began(self, wanted: Wanted) -> None:
        """From now on."""

    def came(self, wanted: Wanted, size: int, *, fetched: bool) -> None:
        """So much."""

    def ended(self, pulled: Pulled) -> None:
        """How it went."""
