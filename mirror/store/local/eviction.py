"""Room on the disk: how much there may be, who goes first.

Counts everything below the cache directory in whole blocks: objects, partial files, the bytes that
fills under way still expect (in this process or another), databases and directories.  Runs on the
index's thread.
"""

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from mirror.store.local.disk_usage import block_bytes, free_on, in_blocks, taken_by
from mirror.store.local.index import ObjectIndex
from mirror.store.local.layout import Layout, ObjectKey
from mirror.store.local.partial import Partial
from mirror.store.local.reservations import Reservation, Reservations
from mirror.store.local.sqlite import Bounds, IndexUnavailableError, files_of

_BATCH: Final = 32  # evictions before others may have the thread: a millisecond
#: Inodes for the files and directories of what is being stored; min_free comes on top.
_SPARE_INODES: Final = 16
#: What grows without asking for room has it reserved, up to these shares of max_size: each
#: database of records, each log of changes, and the directories of blobs and manifests.
_RESERVED_SHARE: Final = 40
_DIRECTORY_SHARE: Final = 16
_DIRECTORIES: Final = 512


class NoRoomError(Exception):
    """There is no room within the limits, and none can be made."""


class Observer(Protocol):
    """Who wants to know of evictions."""

    def evicted(self, size: int) -> None:
        """An object of ``size`` bytes went to make room."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What the operator allows: bytes, and inodes on a file system that has so many only."""

    max_bytes: int
    min_free_bytes: int
    min_free_inodes: int = 0

    @property
    def bounds(self) -> Bounds:
        """How large the databases may become."""
        return Bounds.of(self.max_bytes)


@dataclass(frozen=True, slots=True)
class _Excess:
    """What is too much, in bytes and in inodes; nothing where neither is above zero."""

    bytes: int
    inodes: float

    def __bool__(self) -> bool:
        return self.bytes > 0 or self.inodes > 0

    def within(self, size: int, files: int) -> bool:
        """Whether it would be gone with so many bytes in so many files."""
        return self.bytes <= size and self.inodes <= files


class Evictor:
    """Decides whether more bytes fit, and makes them fit by evicting the least recently used."""

    def __init__(
        self,
        layout: Layout,
        index: ObjectIndex,
        limits: Limits,
        observer: Observer,
        reserved: dict[str, int],
        crowded: Callable[[int], None],
        directory_bytes: int = 0,
    ) -> None:
        """Keep what was promised in ``reserved``, which outlives an index that is lost.

        ``crowded`` is told, with the bytes that are kept, when there would be room without them.
        The directories take ``directory_bytes``, which others find out: there are a thousand.

        Raises:
            OSError: the file system cannot be asked.
        """
        self._directory_bytes = directory_bytes
        self._block = block_bytes(layout.root)
        self._layout = layout
        self._index = index
        self._limits = limits
        self._observer = observer
        self._reserved = reserved
        self._crowded = crowded
        self._expected = Reservations(layout.expected)

    def used_bytes(self) -> int:
        """Objects, partial files and what fills under way still expect."""
        return self._index.total_bytes() + self._partial_bytes()

    def overhead_bytes(self) -> int:
        """Databases, notes of fills, and directories."""
        return self._overhead_bytes(0, 0, 0)

    def _reserved_overhead(self) -> int:
        """The same, with what it may grow to before more is evicted."""
        bounds, most = self._limits.bounds, self._limits.max_bytes
        log_bytes = min(bounds.log_bytes, most // _RESERVED_SHARE)
        record_bytes = min(bounds.record_bytes + bounds.log_bytes, most // _RESERVED_SHARE)
        directory_bytes = min(_DIRECTORIES * self._block, most // _DIRECTORY_SHARE)
        return self._overhead_bytes(record_bytes, log_bytes, directory_bytes)

    def _overhead_bytes(self, record_bytes: int, log_bytes: int, directory_bytes: int) -> int:
        """At least so much of each."""
        layout = self._layout
        records = (taken_by(files_of(directory)) for directory in layout.records())
        sizes = [max(size, record_bytes) for size in records]
        index, log, shared = (taken_by([file]) for file in files_of(layout.root))
        sizes += [index, max(log, log_bytes), shared, taken_by(layout.others())]
        return sum(sizes) + max(self._directory_bytes, directory_bytes)

    def reserve(self, partial: Path, size: int, total: int | None) -> bool | None:
        """Promise a partial file to grow to ``size`` bytes; False when that cannot be had.

        ``total`` is the size of the blob, where it is known.

        Returns:
            None while there is more to evict: to be called again.

        Raises:
            OSError: the disk says no.
        """
        self._reserved[partial.name] = size
        expectation = Reservation(size, total)
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
        incoming = in_blocks(incoming, self._block)
        excess = self._excess(incoming)
        if not excess:
            return True
        idle = self._idle()
        kept, most = (
            self._index.kept.bytes(),
            self._index.total_bytes() + sum(size for _, size in idle),
        )
        files = self._index.count() + len(idle)
        if excess.within(most, files) and not excess.within(most - kept, files):
            self._crowded(kept)
        if not excess.within(most - kept, files) or not self._evict(excess):
            return False
        return None if self._excess(incoming) else True

    def _excess(self, incoming: int) -> _Excess:
        limits, free = self._limits, free_on(self._layout.root)
        over = self.used_bytes() + self._reserved_overhead() + incoming - limits.max_bytes
        still_to_write = self._partial_bytes() - sum(self._partial_sizes().values())
        short = limits.min_free_bytes + still_to_write + incoming - free.bytes
        return _Excess(max(over, short), limits.min_free_inodes + _SPARE_INODES - free.inodes)

    def _evict(self, excess: _Excess) -> bool:
        """Remove some of the oldest until the excess is gone; False if there was none."""
        oldest = self._index.oldest(_BATCH)
        if self._remove_idle(before=oldest[0][1] if oldest else math.inf):
            return True
        gone = 0
        for files, (key, _) in enumerate(oldest, 1):
            size = self._remove(key)
            self._observer.evicted(size)
            gone += in_blocks(size, self._block)
            if excess.within(gone, files):
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
        largest = (max(sizes.get(name, 0), expected.get(name, 0)) for name in names)
        return sum(in_blocks(size, self._block) for size in largest)

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
                yield path, in_blocks(path.stat().st_size, self._block)

    def _idle(self) -> list[tuple[Path, int]]:
        return [
            (path, size)
            for path, size in self._partials()
            if path.name not in self._reserved and not Partial.is_led(path)
        ]

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
