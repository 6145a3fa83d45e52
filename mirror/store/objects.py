"""Objects as the rest of the program sees them: awaitable, bounded, touched when used.

One thread owns the index and everything that must agree with it (room, adoption, eviction);
this module is the only way to that thread.  A hit costs one hop: the row is read and the file
opened in the same visit, so that no eviction can come between.
"""

import asyncio
import contextlib
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

from mirror.oci.manifest import NotAManifest, identify
from mirror.store.database import IndexUnavailableError
from mirror.store.index import ObjectIndex
from mirror.store.layout import Layout, ObjectKey
from mirror.store.partial import Partial
from mirror.store.space import Limits, Observer, Space

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class OpenObject:
    """A stored object with an open descriptor, the caller's to close; ``size`` in bytes."""

    fd: int
    size: int
    media_type: str

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self.fd)


@dataclass(frozen=True, slots=True)
class Usage:
    """What the cache holds right now, in bytes and objects."""

    used_bytes: int
    objects: int
    max_bytes: int


class Objects:
    """The store of whole objects and of the partial files that become objects."""

    def __init__(
        self,
        layout: Layout,
        limits: Limits,
        observer: Observer,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._layout = layout
        self._limits = limits
        self._observer = observer
        self._clock = clock
        self._touched: dict[ObjectKey, float] = {}
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="index")

    async def open(self) -> None:
        """Open the index and repair what a crash left.

        Raises:
            OSError: the cache directory cannot be used.
            IndexUnavailableError: the database in it cannot.
        """
        await self._visit(self._open)

    def _open(self) -> None:
        self._layout.ensure()
        self._index = ObjectIndex(self._layout)
        self._space = Space(self._layout, self._index, self._limits, self._observer)
        self._index.repair(_media_type_of)

    async def close(self) -> None:
        """Write down what was touched and close the index."""
        await self.flush_touches()
        await self._visit(self._index.close)
        self._thread.shutdown()

    async def lookup(self, key: ObjectKey) -> OpenObject | None:
        """Open a stored object, or None.  An index that cannot be read is a miss."""
        opened = await self._visit(self._lookup, key)
        if opened is not None:
            self._touched[key] = self._clock()
        return opened

    def _lookup(self, key: ObjectKey) -> OpenObject | None:
        with contextlib.suppress(IndexUnavailableError, OSError):
            entry = self._index.lookup(key)
            if entry is None:
                return None
            try:
                fd = os.open(entry.path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                self._index.remove(key)
                return None
            if os.fstat(fd).st_size == entry.size:
                return OpenObject(fd, entry.size, entry.media_type)
            os.close(fd)
            self._index.remove(key)
        return None

    async def reserve(self, partial: Partial, size: int) -> bool:
        """Make sure that a partial file may grow to ``size`` bytes, evicting for it."""
        await self.flush_touches()
        return await self._visit(self._space.reserve, partial.path, size)

    async def release(self, partial: Partial) -> None:
        """Give back what :meth:`reserve` promised."""
        await self._visit(self._space.release, partial.path)

    async def adopt(self, key: ObjectKey, partial: Partial, media_type: str = "") -> None:
        """Make a whole, verified partial file an object.

        Raises:
            OSError, IndexUnavailableError: it could not be kept.
        """
        await self._visit(self._adopt, key, partial, media_type)

    def _adopt(self, key: ObjectKey, partial: Partial, media_type: str) -> None:
        self._space.release(partial.path)
        self._index.adopt(key, partial.path, partial.length, media_type)

    async def make_room(self, incoming: int) -> bool:
        """Evict until ``incoming`` more bytes fit; False when they never can."""
        await self.flush_touches()
        return await self._visit(self._space.make_room, incoming)

    async def forget(self, key: ObjectKey) -> bool:
        """Drop an object; say whether it was there."""
        return await self._visit(self._index.remove, key) > 0

    async def usage(self) -> Usage:
        """What the cache holds right now."""
        return await self._visit(self._usage)

    def _usage(self) -> Usage:
        return Usage(self._space.used_bytes(), self._index.count(), self._limits.max_bytes)

    async def flush_touches(self) -> None:
        """Tell the index what was used since the last call."""
        touched, self._touched = self._touched, {}
        if touched:
            with contextlib.suppress(IndexUnavailableError):  # LRU order is worth no failure
                await self._visit(self._index.touch, touched)

    async def _visit(self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, lambda: function(*args, **kwargs))


def _media_type_of(manifest: os.PathLike[str]) -> str:
    with open(manifest, "rb") as file:
        try:
            return identify(file.read(), "")
        except NotAManifest:
            return ""
