"""A bounded memory with expiry.

The only module that knows aiocache.  Its memory cache has no bound of its own, wraps each call
in a time-out that costs more than the call (so: ``timeout=0``), and keeps what has a ttl of 0
for ever (so: a ttl here is always positive).
"""

from collections import OrderedDict
from typing import Any, Final

from aiocache import SimpleMemoryCache
from aiocache.serializers import NullSerializer

_LEAST_TTL_SECONDS: Final = 0.001
#: What an entry takes besides its key and value: dictionaries, a timer, the objects themselves.
_ENTRY_BYTES: Final = 512


class Backend:
    """Values by key, for a while."""

    def __init__(self, limit: int, most_bytes: int = 32 * 1024 * 1024) -> None:
        """Hold at most ``limit`` keys, and ``most_bytes`` with their values.

        Past that the least recently used go.
        """
        self._cache = SimpleMemoryCache(serializer=NullSerializer(encoding=None), timeout=0)
        self._limit = limit
        self._most_bytes = most_bytes
        self._sizes: OrderedDict[str, int] = OrderedDict()  # the least recently used first
        self._bytes = 0

    async def get(self, key: str) -> Any:
        """The value, or None when it is unknown, expired or crowded out."""
        if key in self._sizes:
            self._sizes.move_to_end(key)
        return await self._cache.get(key)

    async def set(self, key: str, value: Any, ttl: float, size: int | None = None) -> None:
        """Keep a value for ``ttl`` seconds; not at all when that is not positive.

        ``size`` in bytes, where ``len`` does not tell it.
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
        """Drop a key; it need not be there."""
        self._bytes -= self._sizes.pop(key, 0)
        await self._cache.delete(key)
