"""A bounded in-memory cache with expiry: fresh tags and pages, refusals, grants, tokens.

Any entry may be dropped at any time.  Only this module uses aiocache.  Its memory cache has no
limit, wraps each call in a time-out that costs more than the call (hence ``timeout=0``), and never
expires an entry with a ttl of 0 (hence a ttl here is always positive).
"""

import time
from collections.abc import Callable
from typing import Any, Final, Generic, TypeVar

from aiocache import SimpleMemoryCache
from aiocache.serializers import NullSerializer

from mirror.lru import Lru

V = TypeVar("V")

_LEAST_TTL_SECONDS: Final = 0.001
#: The memory of an entry besides its key and value: dictionaries, a timer, object headers.
_ENTRY_BYTES: Final = 512


class TtlCache(Generic[V]):
    """Values by name; beyond a limit, the least recently used are dropped."""

    def __init__(
        self,
        ttl: float,
        most: int,
        most_bytes: int,
        size_of: Callable[[Any], int] = len,
        largest: int | None = None,
    ) -> None:
        """Hold at most ``most`` values of ``most_bytes`` in all, each for ``ttl`` seconds.

        ``size_of`` returns the size of a value in bytes; values over ``largest`` are not stored.
        """
        self._cache = SimpleMemoryCache(serializer=NullSerializer(encoding=None), timeout=0)
        self._names: Lru[str, bool] = Lru(most, most_bytes)
        self._ttl = ttl
        self._size_of = size_of
        self._largest = most_bytes if largest is None else largest

    async def entry(self, name: str) -> tuple[V, float] | None:
        """Return the value and the end of its life (monotonic seconds); None if it is missing."""
        self._names.get(name)  # a use
        entry: tuple[V, float] | None = await self._cache.get(name)
        return entry

    async def lookup(self, name: str) -> V | None:
        """Return the value, None if it is unknown, expired or dropped."""
        entry = await self.entry(name)
        return None if entry is None else entry[0]

    async def put(self, name: str, value: V, ttl: float | None = None) -> None:
        """Store a value, for ``ttl`` seconds if given; a ttl that is not positive removes it."""
        ttl, size = self._ttl if ttl is None else ttl, self._size_of(value)
        if ttl <= 0 or size > self._largest:
            await self.forget(name)
            return
        ttl = max(ttl, _LEAST_TTL_SECONDS)
        await self._cache.set(name, (value, time.monotonic() + ttl), ttl=ttl)
        for dropped in self._names.put(name, True, len(name) + size + _ENTRY_BYTES):
            await self._cache.delete(dropped)

    async def forget(self, name: str) -> None:
        """Remove a value, if it exists."""
        self._names.pop(name)
        await self._cache.delete(name)
