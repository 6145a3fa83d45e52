"""Verification of all cached objects."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from mirror.inventory.cache import Cache
from mirror.store.local.layout import ObjectKey


@dataclass(slots=True)
class Verification:
    """The result of a verification; ``bytes`` is the disk space of the hashed objects."""

    objects: int = 0
    bytes: int = 0
    damaged: list[ObjectKey] = field(default_factory=list)


async def verify(
    cache: Cache,
    expected: Callable[[int], None],
    advanced: Callable[[int], None],
    dropped: Callable[[ObjectKey], Awaitable[None]],
) -> Verification:
    """Hash all cached objects and remove damaged ones.

    Args:
        cache: the cache to verify.
        expected: called once with the total number of bytes on the disk.
        advanced: called with the bytes on the disk of each finished object.
        dropped: called with the key of each damaged object.

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
            if verdict is not None:  # None: evicted in the meantime
                verification.objects += 1
                verification.bytes += row.size
            advanced(row.takes)

    await asyncio.gather(*(work() for _ in range(max(2, os.cpu_count() or 1))))
    return verification
