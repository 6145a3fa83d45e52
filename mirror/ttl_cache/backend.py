"""A bounded in-memory cache with expiry.

Only this module uses aiocache.  Its memory cache has no limit, wraps each call in a time-out that
costs more than the call (hence ``timeout=0``), and never expires an entry with a ttl of 0 (hence a
ttl here is always positive).
"""

from collections import OrderedDict
from typing import Any, Final

from aiocache import SimpleMemoryCache
from aiocache.serializers import NullSerializer

_LEAST_TTL_SECONDS: Final = 0.001
#: The memory of an entry besides its key and value: dictionaries, a timer, object headers.
_ENTRY_BYTES: Final = 512


class Backend:
    """Values by key, with expiry."""

    def __init__(self, limit: int, most_bytes: int = 32 * 1024 * 1024) -> None:
        """Hold at most ``limit`` entries of ``most_bytes`` in all.

        Beyond either limit, the least recently used entries are dropped.
        """
        self._cache = SimpleMemoryCache(serializer=NullSerializer(encoding=None), timeout=0)
        self._limit = limit
        self._most_bytes = most_bytes
        self._sizes: OrderedDict[str, int] = OrderedDict()  # the least recently used first
        self._bytes = 0

    async def get(self, key: str) -> Any:
        """The value, None if it is unknown, expired or dropped."""
        if key in self._sizes:
            self._sizes.move_to_end(key)
        return await self._cache.get(key)

    async def set(self, key: str, value: Any, ttl: float, size: int | None = None) -> None:
        """Store a value for ``ttl`` seconds; remove it if ``ttl`` is not positive.

        ``size`` is the size of the value in bytes, if ``len(value)`` is not.
        """
        if ttl <= 0:
            await self.delete(key)
            return
        await self._cache.set(key, value, ttl=max(ttl, _LEAST_TTL_SECONDS))
        weight = len(key) + (len(value) if size is None else size) + _ENTRY_BYTES
        self._bytes += weight - self._sizes.pop(key, 0)
        self._sizes[key] = weight
        while len(self._sizes) > self._limit or self._bytes > self._most_bytes:
            await self.delete(next(iter(self._sizes)))

    async def delete(self, key: str) -> None:
        """Remove a key, if it exists."""
        self._bytes -= self._sizes.pop(key, 0)
        await self._cache.delete(key)
