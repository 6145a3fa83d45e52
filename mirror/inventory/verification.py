"""Hashing everything that is cached."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from mirror.inventory.open_cache import Cache, workers
from mirror.store.local.layout import ObjectKey


@dataclass(slots=True)
class Verification:
    """What came out of hashing everything; sizes in bytes."""

    objects: int = 0
    bytes: int = 0
    damaged: list[ObjectKey] = field(default_factory=list)


async def verify(
    cache: Cache,
    expected: Callable[[int], None],
    advanced: Callable[[int], None],
    dropped: Callable[[ObjectKey], Awaitable[None]],
) -> Verification:
    """Hash every cached object and drop what is damaged.

    Args:
        cache: what to look through.
        expected: is told how many bytes there are to hash.
        advanced: is told of every object that is done, and its size in bytes.
        dropped: is told of every object that was damaged.

    Raises:
        IndexUnavailableError, OSError: the cache cannot be used.
    """
    verification, objects = Verification(), cache.objects
    await objects.rebuilt()
    expected((await objects.usage()).used_bytes)
    rows, turn = objects.rows(), asyncio.Lock()

    async def work() -> None:
        while True:
            async with turn:
                row = await anext(rows, None)
            if row is None:
                return
            verdict = await objects.verify(row.key)
            if verdict is False:
                verification.damaged.append(row.key)
                await dropped(row.key)
            if verdict is not None:  # else it was evicted while we came to it
                verification.objects += 1
                verification.bytes += row.size
            advanced(row.size)

    await asyncio.gather(*(work() for _ in range(workers())))
    return verification
