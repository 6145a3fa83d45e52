"""A bounded mapping that drops the least recently used entries."""

import math
from collections import OrderedDict
from collections.abc import Iterator
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Lru(Generic[K, V]):
    """At most ``most`` entries, with a total weight of at most ``most_weight``."""

    def __init__(self, most: int, most_weight: float = math.inf) -> None:
        self._most = most
        self._most_weight = most_weight
        self._weight = 0
        self._entries: OrderedDict[K, tuple[V, int]] = OrderedDict()

    def __iter__(self) -> Iterator[K]:
        """Yield the keys, the least recently used first; it may change meanwhile."""
        return iter(list(self._entries))

    def get(self, key: K) -> V | None:
        """Return the value of a key, and count this as its use; None if it is missing."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        self._entries.move_to_end(key)
        return entry[0]

    def put(self, key: K, value: V, weight: int = 0) -> list[K]:
        """Add or replace an entry; return the keys that were dropped, maybe this one too."""
        self.pop(key)
        self._entries[key] = value, weight
        self._weight += weight
        dropped = []
        while len(self._entries) > self._most or self._weight > self._most_weight:
            dropped.append(next(iter(self._entries)))
            self.pop(dropped[-1])
        return dropped

    def pop(self, key: K) -> V | None:
        """Remove an entry and return its value; None if it is missing."""
        entry = self._entries.pop(key, None)
        if entry is None:
            return None
        self._weight -= entry[1]
        return entry[0]
