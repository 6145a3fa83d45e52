"""Figures of several processes: each writes files that the others read, as prometheus-client does.

The library writes to a memory-mapped file.  If the file has unallocated blocks and the disk is
full (a full ``/dev/shm``), the system kills the process; if the file cannot be opened or extended,
the request that is being counted fails.  This module allocates blocks before it writes to them,
and keeps figures in this process while they cannot be written.
"""

import logging
import mmap
import os
import threading
import time
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, values
from prometheus_client.metrics_core import Metric
from prometheus_client.mmap_dict import MmapedDict, mmap_key
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector
from prometheus_client.samples import Exemplar

from mirror.metrics import multiprocess

_FIRST_BYTES: Final = 64 * 1024
_ENTRY_BYTES: Final = 64  # maximum size of an entry without its key
_AGAIN_SECONDS: Final = 10.0

#: The name of the process that starts the workers, which are named by their numbers.
SUPERVISOR = "supervisor"

_log = logging.getLogger(__name__)


class _File(MmapedDict):
    """The library's file, with blocks allocated before they are written."""

    def __init__(self, path: Path) -> None:
        """Open the file for writing.

        Raises:
            OSError: the file cannot be opened, or the disk is full.
        """
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            _allocate(descriptor, max(os.fstat(descriptor).st_size, _FIRST_BYTES))
        except OSError:
            path.unlink()  # other processes cannot read an empty file
            raise
        finally:
            os.close(descriptor)
        super().__init__(str(path))  # type: ignore[no-untyped-call]  # has no types

    def knows(self, key: str) -> bool:
        """Return True if the key has an entry, so that writing cannot fail."""
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
    """The files of this process, by metric type."""

    def __init__(self, directory: Path) -> None:
        self.lock = threading.Lock()
        #: The last exemplar of each bucket in this process, by name and labels.
        self.exemplars: dict[tuple[str, frozenset[tuple[str, str]]], Exemplar] = {}
        self._directory = directory
        self._files: dict[str, _File] = {}
        self._again = 0.0  # monotonic time of the next attempt after a failure
        self._told = False

    def write(self, name: str, key: str, value: float, timestamp: float) -> None:
        """Write a figure, or skip it until a later call; the caller must hold the lock."""
        file = self._files.get(name)
        if file is None or not file.knows(key):
            if time.monotonic() < self._again:
                return
            try:
                if file is None:
                    file = _File(self._directory / f"{name}_{os.getpid()}.db")
                    self._files[name] = file
                file.read_value(key)  # type: ignore[no-untyped-call]  # adds the entry
            except OSError as error:
                self._fail(error)
                return
        file.write_value(key, value, timestamp)  # type: ignore[no-untyped-call]

    def _fail(self, error: OSError) -> None:
        self._again = time.monotonic() + _AGAIN_SECONDS
        if not self._told:
            _log.warning(
                "%s: %s; requests go on, but /metrics lacks figures of this worker until there is "
                "space (docker run --shm-size)",
                self._directory,
                error.strerror,
            )
        self._told = True


def use_shared_files() -> FigureFiles | None:
    """Let all metrics that are made from now on write to shared files; None: they are not shared.

    Call it before a process makes its first metric: the library has no parameter for this.
    """
    if not multiprocess.are_shared():
        return None
    files = FigureFiles(multiprocess.directory())
    values.ValueClass = figure_values(files)
    return files


class SharedFigures(Collector):
    """The sums over all processes, with the exemplars of this process."""

    def __init__(self, files: FigureFiles) -> None:
        self._files = files

    def collect(self) -> Iterable[Metric]:
        """Return the metrics.

        Raises:
            OSError, ValueError, RuntimeError, struct.error: a file cannot be read.
        """
        # The library has no types.
        collector = MultiProcessCollector(None, multiprocess.directory())  # type: ignore[no-untyped-call]
        for metric in collector.collect():  # type: ignore[no-untyped-call]
            metric.samples = [
                each._replace(
                    exemplar=self._files.exemplars.get((each.name, frozenset(each.labels.items())))
                )
                for each in metric.samples
            ]
            yield metric


def figure_values(files: FigureFiles) -> type:
    """Return a class that replaces the library's ``ValueClass`` and writes to ``files``."""

    class Value:
        """One figure; the methods are those that the library calls."""

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
            self._sample = name, frozenset(zip(labelnames, labelvalues, strict=True))
            self._value = self._timestamp = 0.0
            with files.lock:
                self._write()

        def _write(self) -> None:
            files.write(self._file, self._key, self._value, self._timestamp)

        def inc(self, amount: float) -> None:
            with files.lock:
                self._value += amount
                self._timestamp = 0.0
                self._write()

        def set(self, value: float, timestamp: float | None = None) -> None:
            with files.lock:
                self._value, self._timestamp = value, timestamp or 0.0
                self._write()

        def get(self) -> float:
            with files.lock:
                return self._value

        def set_exemplar(self, exemplar: Exemplar) -> None:
            """Keep the exemplar in this process: the file format has no field for it."""
            files.exemplars[self._sample] = exemplar

        def get_exemplar(self) -> Exemplar | None:
            return files.exemplars.get(self._sample)

    return Value


class Lifecycle:
    """Events that one process handles for all; the others report no values."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, text: str) -> Gauge:
            return Gauge(name, text, registry=registry, multiprocess_mode="mostrecent")

        self._successful = gauge(
            "mirror_config_last_reload_successful",
            "Whether the last configuration that was read is in force (1) or not (0).",
        )
        self._success_time = gauge(
            "mirror_config_last_reload_success_timestamp_seconds",
            "Unix time at which the configuration in force was read.",
        )
        self._replaced = Counter(
            "mirror_workers_replaced_total",
            "Workers that ended or hung, and were replaced.",
            registry=registry,
        )

    def reloaded(self, *, successful: bool) -> None:
        """Record the result of reading the configuration, at the start or again."""
        self._successful.set(successful)
        if successful:
            self._success_time.set_to_current_time()

    def worker_replaced(self) -> None:
        """Count a worker that ended although the mirror goes on."""
        self._replaced.inc()


class WorkerProcesses(Collector):
    """``process_*`` of all processes of the mirror, labelled with the process."""

    def collect(self) -> Iterable[Metric]:
        """Return the metrics of each process that runs."""
        metrics: dict[str, Metric] = {}
        for name, pid in multiprocess.processes().items():
            for metric in ProcessCollector(pid=partial(str, pid), registry=None).collect():
                labelled = [each._replace(labels={"worker": name}) for each in metric.samples]
                if metric.name in metrics:
                    metrics[metric.name].samples += labelled
                else:
                    metric.samples = labelled
                    metrics[metric.name] = metric
        return metrics.values()
