"""A bounded in-memory cache with expiry: fresh tags and pages, refusals, grants, tokens.

Any entry may be dropped at any time.  Behind the memory there may be a cache that several mirrors
share (``cluster.values``).  The memory is that of aiocache, which has no limit, wraps each call in
a time-out that costs more than the call (hence ``timeout=0``), and never expires an entry with a
ttl of 0 (hence a ttl here is always positive).
"""

import sys
import time
from collections.abc import Callable
from typing import Any, Final, Generic, Protocol, TypeVar

from mirror.lru import Lru

_known = {name: module for name, module in sys.modules.items() if name == "redis"}
sys.modules["redis"] = None  # type: ignore[assignment]
try:
    # Aiocache imports redis if it is there: 0.1 s and 8 MiB that only a cluster needs.
    from aiocache import SimpleMemoryCache
    from aiocache.serializers import NullSerializer
finally:
    del sys.modules["redis"]
    sys.modules.update(_known)

V = TypeVar("V")

_LEAST_TTL_SECONDS: Final = 0.001
#: The memory of an entry besides its key and value: dictionaries, a timer, object headers.
_ENTRY_BYTES: Final = 512


class SharedValues(Protocol[V]):
    """Values of one kind that several mirrors share; none of its methods raises an error."""

    async def lookup(self, name: str) -> tuple[V, float] | None:
        """Return a value and its remaining life in seconds, None if it is missing."""

    async def put(self, name: str, value: V, ttl: float) -> None:
        """Store a value for ``ttl`` seconds."""

    async def forget(self, name: str) -> None:
        """Remove a value."""


class TtlCache(Generic[V]):
    """Values by name; beyond a limit, the least recently used are dropped."""

    def __init__(
        self,
        ttl: float,
        most: int,
        most_bytes: int,
        size_of: Callable[[Any], int] = len,
        largest: int | None = None,
        shared: SharedValues[V] | None = None,
    ) -> None:
        """Hold at most ``most`` values of ``most_bytes`` in all, each for ``ttl`` seconds.

        ``size_of`` returns the size of a value in bytes; values over ``largest`` are not stored.
        Values that are missing here are looked up in ``shared``.
        """
        self._cache = SimpleMemoryCache(serializer=NullSerializer(encoding=None), timeout=0)
        self._names: Lru[str, bool] = Lru(most, most_bytes)
        self._ttl = ttl
        self._size_of = size_of
        self._largest = most_bytes if largest is None else largest
        self._shared = shared

    async def entry(self, name: str) -> tuple[V, float] | None:
        """Return the value and the end of its life (monotonic seconds); None if it is missing."""
        self._names.get(name)  # a use
        entry: tuple[V, float] | None = await self._cache.get(name)
        if entry is None and self._shared is not None:
            found = await self._shared.lookup(name)
            if found is not None:
                value, left = found[0], min(found[1], self._ttl)
                await self._put_here(name, value, left)
                return value, time.monotonic() + left
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
        await self._put_here(name, value, ttl)
        if self._shared is not None:
            await self._shared.put(name, value, ttl)

    async def _put_here(self, name: str, value: V, ttl: float) -> None:
        ttl, size = max(ttl, _LEAST_TTL_SECONDS), self._size_of(value)
        await self._cache.set(name, (value, time.monotonic() + ttl), ttl=ttl)
        for dropped in self._names.put(name, True, len(name) + size + _ENTRY_BYTES):
            await self._cache.delete(dropped)

    async def forget(self, name: str) -> None:
        self._names.pop(name)
        await self._cache.delete(name)
        if self._shared is not None:
            await self._shared.forget(name)
