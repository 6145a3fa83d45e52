"""Disk space: the limits, and the eviction of the least recently used objects.

Counts everything in the cache directory in whole blocks: objects, partial files, the reserved
bytes of running fills (in this process or another), databases and directories.  Runs on the
index's thread.
"""

import contextlib
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from mirror.store.interface import IndexUnavailableError
from mirror.store.local.disk_usage import block_bytes, free_on, in_blocks, taken_by
from mirror.store.local.index import ObjectIndex
from mirror.store.local.layout import Layout, ObjectKey
from mirror.store.local.partial import Partial
from mirror.store.local.sqlite import Bounds, files_of


@dataclass(frozen=True, slots=True)
class Reservation:
    """``size``: bytes that a fill may grow to; ``total``: size of the blob, None if unknown."""

    size: int
    total: int | None


class Reservations:
    """The reservations in one cache directory, by the name of the partial file."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def put(self, name: str, reservation: Reservation) -> None:
        """Write a reservation.

        Raises:
            OSError: the file cannot be written.
        """
        total = "-" if reservation.total is None else reservation.total
        # Constant length, so that one write replaces the whole text and no reader sees half of it.
        text = f"{reservation.size:20} {total:>20}"
        fd = os.open(self._directory / name, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.pwrite(fd, text.encode(), 0)
        finally:
            os.close(fd)

    def lookup(self, name: str) -> Reservation | None:
        try:
            size, total = (self._directory / name).read_text().split()
            return Reservation(int(size), None if total == "-" else int(total))
        except (OSError, ValueError):
            return None

    def forget(self, name: str) -> None:
        with contextlib.suppress(OSError):
            (self._directory / name).unlink(missing_ok=True)

    def names(self) -> list[str]:
        return os.listdir(self._directory)

    def sizes(self) -> dict[str, int]:
        found = ((name, self.lookup(name)) for name in self.names())
        return {name: each.size for name, each in found if each is not None}


_BATCH: Final = 32  # evictions before other calls get the thread: one millisecond
#: Inodes for the files and directories of new objects, in addition to min_free.
_SPARE_INODES: Final = 16
#: Space is reserved for files that grow without a reservation, up to these shares of max_size:
#: each database of records, each write-ahead log, and the directories of blobs and manifests.
_RESERVED_SHARE: Final = 40
_DIRECTORY_SHARE: Final = 16
_DIRECTORIES: Final = 512


class Observer(Protocol):
    """Receives evictions."""

    def evicted(self, size: int) -> None:
        """``size`` is in bytes."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The operator's limits: bytes, and inodes if their number on the file system is limited."""

    max_bytes: int
    min_free_bytes: int
    min_free_inodes: int = 0

    @property
    def bounds(self) -> Bounds:
        return Bounds.of(self.max_bytes)


@dataclass(frozen=True, slots=True)
class Usage:
    """The current use of the cache, in bytes on the disk and number of objects.

    ``used_bytes`` counts blobs, manifests and partial files, ``overhead_bytes`` databases and
    directories; their sum stays within ``max_bytes``.  ``free_bytes`` is free on the disk.
    """

    used_bytes: int
    overhead_bytes: int
    objects: int
    max_bytes: int
    free_bytes: int


@dataclass(frozen=True, slots=True)
class _Excess:
    """The excess over the limits, in bytes and inodes; false if neither is above zero."""

    bytes: int
    inodes: float

    def __bool__(self) -> bool:
        return self.bytes > 0 or self.inodes > 0

    def within(self, size: int, files: int) -> bool:
        """Return True if removing ``size`` bytes in ``files`` files ends the excess."""
        return self.bytes <= size and self.inodes <= files


class Evictor:
    """Decides whether more bytes fit, and evicts the least recently used objects if needed."""

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
        """``reserved`` has the reservations of this process; it survives the loss of an index.

        ``crowded`` is called with the size of the kept objects if only these prevent a fit.
        ``directory_bytes`` is the space of the directories; the caller measures it, since there
        are about a thousand.

        Raises:
            OSError: the file system cannot be queried.
        """
        self._directory_bytes = directory_bytes
        self._block = block_bytes(layout.root)
        self._layout = layout
        self._index = index
        self._limits = limits
        self._observer = observer
        self._reserved = reserved
        self._crowded = crowded
        self._reservations = Reservations(layout.reservations)

    def used_bytes(self) -> int:
        """Return the bytes of objects, partial files and reservations of running fills."""
        return self._index.total_bytes() + self._partial_bytes()

    def usage(self) -> Usage:
        """Raise OSError if the file system cannot be queried."""
        overhead, objects = self._overhead_bytes(0, 0, 0), self._index.count()
        free = free_on(self._layout.root).bytes
        return Usage(self.used_bytes(), overhead, objects, self._limits.max_bytes, free)

    def _reserved_overhead(self) -> int:
        """Return the overhead, including the increase that it has reserved."""
        bounds, most = self._limits.bounds, self._limits.max_bytes
        log_bytes = min(bounds.log_bytes, most // _RESERVED_SHARE)
        record_bytes = min(bounds.record_bytes + bounds.log_bytes, most // _RESERVED_SHARE)
        directory_bytes = min(_DIRECTORIES * self._block, most // _DIRECTORY_SHARE)
        return self._overhead_bytes(record_bytes, log_bytes, directory_bytes)

    def _overhead_bytes(self, record_bytes: int, log_bytes: int, directory_bytes: int) -> int:
        """Return the overhead; count each part with at least the given size."""
        layout = self._layout
        records = (taken_by(files_of(directory)) for directory in layout.records())
        sizes = [max(size, record_bytes) for size in records]
        index, log, shared = (taken_by([file]) for file in files_of(layout.root))
        sizes += [index, max(log, log_bytes), shared, taken_by(layout.others())]
        return sum(sizes) + max(self._directory_bytes, directory_bytes)

    def reserve(self, partial: Path, size: int, total: int | None) -> bool | None:
        """Reserve space for a partial file to grow to ``size`` bytes.

        ``total`` is the size of the blob in bytes, None if unknown.

        Returns:
            True if the space is reserved, False if there is none, None if the caller must call
            again for more evictions.

        Raises:
            OSError: the reservation cannot be written.
        """
        self._reserved[partial.name] = size
        reservation = Reservation(size, total)
        # Write first, then count: two processes that do this at once see each other's reservation.
        with contextlib.suppress(OSError):  # a full disk: retried below, after eviction
            self._reservations.put(partial.name, reservation)
        fits = self.make_room(0)
        if fits:
            self._reservations.put(partial.name, reservation)
        elif fits is False:
            self.release(partial)
        return fits

    def release(self, partial: Path) -> None:
        """Drop the reservation of an ended fill; the bytes of its partial file still count."""
        self._reserved.pop(partial.name, None)
        self._reservations.forget(partial.name)

    def make_room(self, incoming: int) -> bool | None:
        """Evict a batch of objects so that ``incoming`` more bytes fit; none if they cannot fit.

        Returns:
            True if the bytes fit, False if they cannot, None if the caller must call again for
            more evictions.
        """
        self._forget_the_gone()
        incoming = in_blocks(incoming, self._block)
        excess = self._excess(incoming)
        if not excess:
            return True
        idle = self._idle()
        kept = self._index.kept.bytes()
        most = self._index.total_bytes() + sum(size for _, size in idle)
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
        """Remove a batch of the oldest until the excess ends; False if there is none to remove."""
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
            # The disk may be too full for the link in pending/.  A row without its file is a miss,
            # so the file can be removed first, which makes space for the regular removal.
            self._index.unlink(key)
            return self._index.remove(key)

    def _partial_bytes(self) -> int:
        sizes = self._partial_sizes()
        reservations = self._reservations.sizes() | self._reserved
        names = sizes.keys() | reservations
        largest = (max(sizes.get(name, 0), reservations.get(name, 0)) for name in names)
        return sum(in_blocks(size, self._block) for size in largest)

    def _forget_the_gone(self) -> None:
        """Drop the reservations of dead processes."""
        for name in self._reservations.names():
            if name not in self._reserved and not Partial.is_led(self._layout.partial / name):
                self._reservations.forget(name)

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
        """Remove the oldest partial file without a leader, if it is older than ``before``."""
        for path, _ in sorted(self._idle(), key=lambda idle: _modified(idle[0])):
            if _modified(path) >= before:
                return False
            if Partial.remove_idle(path):
                return True
        return False


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # adopted between two system calls: counts as newest
        return math.inf
