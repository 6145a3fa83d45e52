"""Room on the disk: how much there may be, who goes first.

Counts everything below the cache directory: objects, partial files, and the bytes that fills
under way still expect, in this process or another.  Runs on the index's thread.
"""

import contextlib
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from mirror.store.database import IndexUnavailableError
from mirror.store.expected import Expectation, Expectations
from mirror.store.index import ObjectIndex
from mirror.store.layout import Layout, ObjectKey
from mirror.store.partial import Partial

_BATCH: Final = 32  # evictions before others may have the thread: a millisecond


class NoRoomError(Exception):
    """There is no room within the limits, and none can be made."""


class Observer(Protocol):
    """Who wants to know of evictions."""

    def evicted(self, size: int) -> None:
        """An object of ``size`` bytes went to make room."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What the operator allows, in bytes."""

    max_bytes: int
    min_free_bytes: int


class Space:
    """Decides whether more bytes fit, and makes them fit by evicting the least recently used."""

    def __init__(
        self,
        layout: Layout,
        index: ObjectIndex,
        limits: Limits,
        observer: Observer,
        reserved: dict[str, int],
        crowded: Callable[[int], None],
    ) -> None:
        """Keep what was promised in ``reserved``, which outlives an index that is lost.

        ``crowded`` is told, with the bytes that are kept, when there would be room without them.
        """
        self._layout = layout
        self._index = index
        self._limits = limits
        self._observer = observer
        self._reserved = reserved
        self._crowded = crowded
        self._expected = Expectations(layout.expected)

    def used_bytes(self) -> int:
        """Objects, partial files and what fills under way still expect."""
        return self._index.total_bytes() + self._partial_bytes()

    def reserve(self, partial: Path, size: int, total: int | None) -> bool | None:
        """Promise a partial file to grow to ``size`` bytes; False when that cannot be had.

        ``total`` is the size of the blob, where it is known.

        Returns:
            None while there is more to evict: to be called again.

        Raises:
            OSError: the disk says no.
        """
        self._reserved[partial.name] = size
        expectation = Expectation(size, total)
        # Said first and counted then: of two processes that do so at once both see the other's.
        with contextlib.suppress(OSError):  # a full disk may have room for it afterwards
            self._expected.put(partial.name, expectation)
        fits = self.make_room(0)
        if fits:
            self._expected.put(partial.name, expectation)
        elif fits is False:
            self.release(partial)
        return fits

    def release(self, partial: Path) -> None:
        """The fill is over, one way or the other; what is on disk still counts."""
        self._reserved.pop(partial.name, None)
        self._expected.forget(partial.name)

    def make_room(self, incoming: int) -> bool | None:
        """Evict some objects, so that ``incoming`` more bytes fit; none when they never can.

        Returns:
            whether they fit; None while there is more to evict: to be called again.
        """
        self._forget_the_gone()
        excess = self._excess(incoming)
        if excess <= 0:
            return True
        kept, most = self._index.kept.bytes(), self._index.total_bytes() + self._idle_bytes()
        if most - kept < excess <= most:
            self._crowded(kept)
        if excess > most - kept or not self._evict(excess):
            return False
        return True if self._excess(incoming) <= 0 else None

    def _excess(self, incoming: int) -> int:
        over = self.used_bytes() + incoming - self._limits.max_bytes
        still_to_write = self._partial_bytes() - sum(self._partial_sizes().values())
        free = shutil.disk_usage(self._layout.root).free
        short = self._limits.min_free_bytes + still_to_write + incoming - free
        return max(over, short)

    def _evict(self, excess: int) -> bool:
        """Remove some of the oldest until ``excess`` bytes are gone; False if there was none."""
        oldest = self._index.oldest(_BATCH)
        if self._remove_idle(before=oldest[0][1] if oldest else math.inf):
            return True
        for key, _ in oldest:
            size = self._remove(key)
            self._observer.evicted(size)
            excess -= size
            if excess <= 0:
                break
        return bool(oldest)

    def _remove(self, key: ObjectKey) -> int:
        try:
            return self._index.remove(key)
        except (OSError, IndexUnavailableError):
            # A disk may be too full for the note that something goes.  A row without its file is
            # a miss, so the file can go first; then there is room for the rest.
            self._index.unlink(key)
            return self._index.remove(key)

    def _partial_bytes(self) -> int:
        sizes = self._partial_sizes()
        expected = self._expected.sizes() | self._reserved
        names = sizes.keys() | expected
        return sum(max(sizes.get(name, 0), expected.get(name, 0)) for name in names)

    def _forget_the_gone(self) -> None:
        """Forget what processes expected that are gone."""
        for name in self._expected.names():
            if name not in self._reserved and not Partial.is_led(self._layout.partial / name):
                self._expected.forget(name)

    def _partial_sizes(self) -> dict[str, int]:
        return {path.name: size for path, size in self._partials()}

    def _partials(self) -> Iterator[tuple[Path, int]]:
        for path in self._layout.partial.iterdir():
            with contextlib.suppress(FileNotFoundError):  # adopted between the two system calls
                yield path, path.stat().st_size

    def _idle(self) -> list[tuple[Path, int]]:
        return [
            (path, size)
            for path, size in self._partials()
            if path.name not in self._reserved and not Partial.is_led(path)
        ]

    def _idle_bytes(self) -> int:
        return sum(size for _, size in self._idle())

    def _remove_idle(self, before: float) -> bool:
        """Remove the oldest partial file that nobody leads, if it is older than ``before``."""
        for path, _ in sorted(self._idle(), key=lambda idle: _modified(idle[0])):
            if _modified(path) >= before:
                return False
            if Partial.remove_idle(path):
                return True
        return False


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # adopted between two system calls: as young as can be
        return math.inf
