"""Figures of one process, in files that the others read: prometheus-client's, but never in the way.

The library writes to memory that a file backs.  Where the file has no blocks yet and the disk none
to give (a full ``/dev/shm``), the system kills the process; where it cannot be opened or grow, the
request that is counted fails.  Here blocks are had before they are written to, and what cannot be
written is kept in this process until it can.
"""

import logging
import mmap
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from prometheus_client.mmap_dict import MmapedDict, mmap_key

_FIRST_BYTES: Final = 64 * 1024
_ENTRY_BYTES: Final = 64  # at most, besides its key
_AGAIN_SECONDS: Final = 10.0

_log = logging.getLogger(__name__)


class _File(MmapedDict):
    """The library's file, whose blocks are there before they are written to."""

    def __init__(self, path: Path) -> None:
        """Open it for writing.

        Raises:
            OSError: it cannot be opened, or there is no room for it.
        """
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            _allocate(descriptor, max(os.fstat(descriptor).st_size, _FIRST_BYTES))
        except OSError:
            path.unlink()  # an empty one is none that the others could read
            raise
        finally:
            os.close(descriptor)
        super().__init__(str(path))  # type: ignore[no-untyped-call]  # has no types

    def knows(self, key: str) -> bool:
        """Whether there is a place for it, so that writing cannot fail."""
        return key in self._positions

    def _init_value(self, key: str) -> None:
        capacity = self._capacity
        while self._used + len(key.encode()) + _ENTRY_BYTES > capacity:
            capacity *= 2
        if capacity > self._capacity:
            _allocate(self._f.fileno(), capacity)
            self._m, self._capacity = mmap.mmap(self._f.fileno(), capacity), capacity
        super()._init_value(key)  # type: ignore[no-untyped-call]


def _allocate(descriptor: int, size: int) -> None:
    if hasattr(os, "posix_fallocate"):  # not on macOS
        os.posix_fallocate(descriptor, 0, size)
    elif os.fstat(descriptor).st_size < size:
        os.ftruncate(descriptor, size)


class FigureFiles:
    """The files of this process, by what they hold."""

    def __init__(self, directory: Path) -> None:
        self.lock = threading.Lock()
        self._directory = directory
        self._files: dict[str, _File] = {}
        self._again = 0.0  # monotonic time of the next attempt, where one has failed
        self._told = False

    def write(self, name: str, key: str, value: float, timestamp: float) -> None:
        """Write a figure, or leave it to a later call; only with the lock."""
        file = self._files.get(name)
        if file is None or not file.knows(key):
            if time.monotonic() < self._again:
                return
            try:
                if file is None:
                    file = _File(self._directory / f"{name}_{os.getpid()}.db")
                    self._files[name] = file
                file.read_value(key)  # type: ignore[no-untyped-call]  # makes its place
            except OSError as error:
                self._fail(error)
                return
        file.write_value(key, value, timestamp)  # type: ignore[no-untyped-call]

    def _fail(self, error: OSError) -> None:
        self._again = time.monotonic() + _AGAIN_SECONDS
        if not self._told:
            _log.warning(
                "%s: %s; requests go on, and /metrics lacks figures of this worker until there is "
                "room (docker run --shm-size)",
                self._directory,
                error.strerror,
            )
        self._told = True


def figure_values(files: FigureFiles) -> type:
    """What the library is to keep every figure in, instead of its own ``ValueClass``."""

    class Value:
        """One figure."""

        _multiprocess = True

        def __init__(
            self,
            typ: str,
            metric_name: str,
            name: str,
            labelnames: Sequence[str],
            labelvalues: Sequence[str],
            help_text: str,
            multiprocess_mode: str = "",
            **_: Any,
        ) -> None:
            self._file = f"{typ}_{multiprocess_mode}" if typ == "gauge" else typ
            self._key = mmap_key(metric_name, name, [*labelnames], [*labelvalues], help_text)
            self._value = self._timestamp = 0.0
            with files.lock:
                self._write()

        def _write(self) -> None:
            files.write(self._file, self._key, self._value, self._timestamp)

        def inc(self, amount: float) -> None:
            """More of it."""
            with files.lock:
                self._value += amount
                self._timestamp = 0.0
                self._write()

        def set(self, value: float, timestamp: float | None = None) -> None:
            """Another value."""
            with files.lock:
                self._value, self._timestamp = value, timestamp or 0.0
                self._write()

        def get(self) -> float:
            """The value in this process."""
            with files.lock:
                return self._value

        def set_exemplar(self, exemplar: object) -> None:
            """Files have no room for exemplars."""

        def get_exemplar(self) -> None:
            """None: as above."""

    return Value
