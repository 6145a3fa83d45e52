"""A bounded memory with expiry.

The only module that knows aiocache.  Its memory cache has no bound of its own, wraps each call
in a time-out that costs more than the call (so: ``timeout=0``), and keeps what has a ttl of 0
for ever (so: a ttl here is always positive).
"""

from collections import OrderedDict
from typing import Any, Final

from aiocache import SimpleMemoryCache
from aiocache.plugins import BasePlugin
from aiocache.serializers import NullSerializer

_LEAST_TTL_SECONDS: Final = 0.001


class _Bound(BasePlugin):  # type: ignore[misc]  # aiocache ships no types
    """Deletes the least recently used key past a number of keys."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self._limit = limit
        self._order: OrderedDict[str, None] = OrderedDict()

    async def post_get(self, client: Any, key: str, *_: object, **__: object) -> None:
        if key in self._order:
            self._order.move_to_end(key)

    async def post_set(self, client: Any, key: str, *_: object, **__: object) -> None:
        self._order[key] = None
        self._order.move_to_end(key)
        while len(self._order) > self._limit:
            await client.delete(next(iter(self._order)))

    async def post_delete(self, client: Any, key: str, *_: object, **__: object) -> None:
        self._order.pop(key, None)


class Backend:
    """Bytes by key, for a while."""

    def __init__(self, limit: int) -> None:
        """Hold at most ``limit`` keys; past that the least recently used goes."""
        self._cache = SimpleMemoryCache(
            serializer=NullSerializer(encoding=None), plugins=[_Bound(limit)], timeout=0
        )

    async def get(self, key: str) -> bytes | None:
        """The value, or None when it is unknown, expired or crowded out."""
        value: bytes | None = await self._cache.get(key)
        return value

    async def set(self, key: str, value: bytes, ttl: float) -> None:
        """Keep a value for ``ttl`` seconds; not at all when that is not positive."""
        if ttl <= 0:
            await self._cache.delete(key)
            return
        await self._cache.set(key, value, ttl=max(ttl, _LEAST_TTL_SECONDS))

    async def delete(self, key: str) -> None:
        """Drop a key; it need not be there."""
        await self._cache.delete(key)
