"""What is done to a cache directory from outside, beside a running mirror or without one."""

import asyncio
import os
import shutil
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from mirror.config import Config
from mirror.store.database import IndexUnavailableError
from mirror.store.index import Row
from mirror.store.layout import Layout
from mirror.store.objects import Objects
from mirror.store.space import Limits


class UpkeepError(Exception):
    """It cannot be done; one line that says why and what to do."""


@dataclass(slots=True)
class Verification:
    """What came out of hashing everything; sizes in bytes."""

    objects: int = 0
    bytes: int = 0
    damaged: list[str] = field(default_factory=list)


class _Nobody:
    def evicted(self, size: int) -> None:
        """Verifying evicts nothing."""


async def verify(
    config: Config, expected: Callable[[int], None], advanced: Callable[[int], None]
) -> Verification:
    """Hash every cached object and drop what is damaged.

    Args:
        config: where the cache is.
        expected: is told how many bytes there are to hash.
        advanced: is told of every object that is done, and its size in bytes.

    Raises:
        UpkeepError: the cache directory cannot be used.
    """
    verification = Verification()
    try:
        async with _opened(config) as objects:
            await objects.rebuilt()
            expected((await objects.usage()).used_bytes)
            rows, turn = objects.rows(), asyncio.Lock()
            work = (_verify(objects, rows, turn, verification, advanced) for _ in range(_workers()))
            await asyncio.gather(*work)
    except (OSError, IndexUnavailableError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UpkeepError(
            f"the cache directory {config.cache.directory} cannot be used: {reason}; "
            "name another with --cache-dir or [cache] directory"
        ) from error
    return verification


async def _verify(
    objects: Objects,
    rows: AsyncGenerator[Row, None],
    turn: asyncio.Lock,
    verification: Verification,
    advanced: Callable[[int], None],
) -> None:
    while True:
        async with turn:
            row = await anext(rows, None)
        if row is None:
            return
        verdict = await objects.verify(row.key)
        if verdict is False:
            verification.damaged.append(str(row.key))
        if verdict is not None:  # else it was evicted while we came to it
            verification.objects += 1
            verification.bytes += row.size
        advanced(row.size)


@asynccontextmanager
async def _opened(config: Config) -> AsyncIterator[Objects]:
    layout = Layout(config.cache.directory.absolute())
    disk_bytes = shutil.disk_usage(layout.root).total  # never make a directory that was misspelt
    limits = Limits(config.cache.max_size.of(disk_bytes), 0)
    with ThreadPoolExecutor(_workers()) as threads:
        objects = Objects(layout, limits, _Nobody(), threads)
        await objects.open()
        try:
            yield objects
        finally:
            await objects.close()


def _workers() -> int:
    return max(2, os.cpu_count() or 1)
