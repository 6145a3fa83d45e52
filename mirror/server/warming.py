"""Pulls images ahead of time, on a schedule, in one process of the mirror.

A client of the mirror's own control socket, like ``mirror warm``; it takes only a share of the
downloads that may run at once.  Every failure is one log line, and is tried again.
"""

import asyncio
import errno
import logging
import platform as machine
import random
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, closing
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

import aiohttp

from mirror.config.model import Config
from mirror.config.warm import ALL_PLATFORMS, WarmConfig
from mirror.http.responses import error_of
from mirror.oci.image_name import ImageName, parse_image
from mirror.oci.platform import Platform
from mirror.oci.reference import InvalidName
from mirror.registry_client.client import MirrorClient, Place, PullError
from mirror.registry_client.pull import EVERYTHING, Pulled, Puller, Wanted
from mirror.server.control import ControlDirectory, is_own
from mirror.server.upstreams import directory
from mirror.store.local.layout import Layout, left_in
from mirror.upstream.routing import ForbiddenError, UnknownRegistryError
from mirror.user_error import UserError

#: Spreads the runs, so that not all mirrors of a company pull in the same second.
_SPREAD: Final = 0.05
_MAX_SPREAD_SECONDS: Final = 120.0
_FIRST_RETRY_SECONDS: Final = 60.0
_MAX_DOUBLINGS: Final = 10
#: One part in so many of all downloads, so that clients find free ones.
_SHARE: Final = 4
_NAMED: Final = 3
_MOST_REQUESTED: Final = 8
_PARALLEL: Final = 4
_SILENCE_SECONDS: Final = 600.0
#: The wall clock is compared so often, so that setting it does not miss a run.
_LOOK_SECONDS: Final = 300.0

_log = logging.getLogger(__name__)


def until_first(entry: WarmConfig, now: datetime, chance: float) -> float:
    """Seconds from the start of the mirror to the first run; ``chance`` is from 0 to 1."""
    if entry.at:
        return _until_time(entry, now) + _MAX_SPREAD_SECONDS * chance
    return min(entry.every.seconds * _SPREAD, _MAX_SPREAD_SECONDS) * chance


def until_next(entry: WarmConfig, now: datetime, failures: int, chance: float) -> float:
    """Seconds to the next run, sooner after ``failures`` incomplete runs in a row."""
    if entry.at:
        regular = _until_time(entry, now) + _MAX_SPREAD_SECONDS * chance
    else:
        regular = entry.every.seconds * (1 - _SPREAD * chance)
    if not failures:
        return regular
    retry = _FIRST_RETRY_SECONDS * float(2 ** min(failures - 1, _MAX_DOUBLINGS))
    return min(regular, retry * (1 + _SPREAD * chance))


def _until_time(entry: WarmConfig, now: datetime) -> float:
    """Seconds until the local clock next shows the time; an hour more or less when DST changes."""
    time = entry.time_of_day()
    assert time is not None
    hour, minute = time
    wall = now.replace(tzinfo=None)
    due = wall.replace(hour=hour, minute=minute, second=0, microsecond=0)
    if due <= wall:
        due += timedelta(days=1)
    # Converted by the system's time zone, which knows when DST changes.
    return due.astimezone().timestamp() - now.timestamp()


def located(config: Config, image: ImageName) -> Wanted:
    """The upstream and repository of an image.

    Raises:
        PullError: its registry is not configured, or the configuration forbids the image.
    """
    names = directory(config)
    try:
        target = names.resolve(image.repository, prefix="", namespace=image.registry, host="")
    except (UnknownRegistryError, ForbiddenError, InvalidName) as error:
        raise PullError(error_of(error, "manifest").message) from error
    return Wanted(str(image), Place(target.upstream, target.repository), image.reference)


def located_all(config: Config, images: Iterable[ImageName]) -> tuple[list[Wanted], list[Pulled]]:
    """Locate images, each once; return also those that cannot be pulled, with the reason."""
    wanted: dict[str, Wanted] = {}
    failed: dict[str, Pulled] = {}
    for image in images:
        try:
            found = located(config, image)
            wanted.setdefault(found.full_name, found)
        except PullError as error:
            there = Wanted(
                str(image), Place(image.registry or "", image.repository), image.reference
            )
            failed[str(image)] = Pulled(there, None, 0, 0, str(error))
    return list(wanted.values()), list(failed.values())


class Warming:
    """Runs the ``[[warm]]`` entries of a configuration."""

    def __init__(
        self,
        *,
        first: bool,
        chance: Callable[[], float] = random.random,
        now: Callable[[], datetime] = lambda: datetime.now().astimezone(),
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Only the ``first`` of several processes pulls."""
        self._first = first
        self._chance = chance
        self._now = now
        self._monotonic = monotonic
        self._config: Config | None = None
        self._tasks: list[asyncio.Task[None]] = []

    def by(self, config: Config) -> None:
        if not self._first or config == self._config:
            return
        self.close()
        self._config = config
        self._tasks = [
            asyncio.create_task(self._regularly(config, entry), name="warm")
            for entry in config.warm
        ]

    def close(self) -> None:
        """Stop; downloaded content stays in the cache."""
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
        """Wait by the wall clock, which goes on during suspend, or by the monotonic clock.

        The first to get there ends the wait: the wall clock may be set back by a year.
        """
        due, ends = self._now().timestamp() + seconds, self._monotonic() + seconds
        while (left := min(due - self._now().timestamp(), ends - self._monotonic())) > 0:  # noqa: ASYNC110  # clocks send no event
            await asyncio.sleep(min(left, _LOOK_SECONDS))


async def _run(config: Config, entry: WarmConfig) -> bool:
    """Pull all listed images that are available; return whether none is missing."""
    started = time.monotonic()
    try:
        wanted, failed = located_all(config, map(parse_image, entry.images))
        pulled = await _pull(config, wanted, _platforms(entry), entry.parallel)
    except (OSError, aiohttp.ClientError) as error:
        _log.warning("images could not be pulled ahead of time: %s", error)
        return False
    except Exception:
        _log.exception("images could not be pulled ahead of time")
        return False
    result = [*pulled, *failed]
    _tell(result, time.monotonic() - started)
    return not any(each.reason for each in result)


async def _pull(
    config: Config, wanted: Sequence[Wanted], platforms: Sequence[Platform], parallel: int
) -> list[Pulled]:
    directory = config.cache.directory.absolute()
    parallel = min(parallel, max(1, config.limits.downloads // _SHARE))
    async with _own_session(Layout(directory).control) as session:
        client = MirrorClient([session])
        puller = Puller(client, left_in(directory), _Nobody(), parallel, attached=True)
        return [*await puller.pull(wanted, platforms)]


def _platforms(entry: WarmConfig) -> Sequence[Platform]:
    if ALL_PLATFORMS in entry.platforms:
        return EVERYTHING
    return [Platform.parse(name) for name in entry.platforms] or [_own_platform()]


def _own_platform() -> Platform:
    return Platform.of("linux", machine.machine())


class Requested:
    """The images that an operator has requested by HTTP: each is pulled in the background."""

    def __init__(self) -> None:
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def pull(self, config: Config, wanted: Wanted) -> None:
        """Begin to pull an image.

        Raises:
            UserError: too many images are being pulled.
        """
        name = wanted.full_name
        if name in self._tasks:
            return
        if len(self._tasks) >= _MOST_REQUESTED:
            raise UserError(f"{_MOST_REQUESTED} images are being pulled: try again later")
        pulling = asyncio.create_task(self._pull(config, wanted), name="warm")
        self._tasks[name] = pulling
        pulling.add_done_callback(lambda _: self._tasks.pop(name, None))

    async def close(self) -> None:
        """Stop; downloaded content stays in the cache."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _pull(self, config: Config, wanted: Wanted) -> None:
        started = time.monotonic()
        try:
            result = await _pull(config, [wanted], [_own_platform()], _PARALLEL)
        except (OSError, aiohttp.ClientError) as error:
            _log.warning("%s could not be pulled ahead of time: %s", wanted.full_name, error)
        else:
            _tell(result, time.monotonic() - started)


@asynccontextmanager
async def _own_session(place: Path) -> AsyncIterator[aiohttp.ClientSession]:
    """A session with this process.

    Raises:
        OSError: it has no control socket.
    """
    with closing(ControlDirectory.open(place)) as sockets:
        own = [name for name in await asyncio.to_thread(sockets.live) if is_own(name)]
        if not own:
            raise OSError(errno.ENOENT, "this process has no control socket", str(place))
        async with sockets.session(own[0], _SILENCE_SECONDS) as session:
            yield session


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
    """Ignores progress: the summary has the totals."""

    def expected(self, images: int) -> None: ...
    def planned(self, wanted: Wanted, size: int) -> None: ...
    def began(self, wanted: Wanted) -> None: ...
    def came(self, wanted: Wanted, size: int, *, fetched: bool) -> None: ...
    def ended(self, pulled: Pulled) -> None: ...
