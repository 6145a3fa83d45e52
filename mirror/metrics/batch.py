"""Counts events that occur a hundred thousand times a second, and reports them in batches.

Counting one response in three metrics and recording the use of its object takes 3.7 us, a third of
the cost of a cached response.  Counting it here takes a tenth of that.  Independent of Prometheus.
"""

import asyncio
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

#: Maximum delay before counts are reported; a scrape of this process reports them earlier.
_WAIT_SECONDS: Final = 0.05


@dataclass(frozen=True, slots=True)
class MetricBatch:
    """``count`` events with a total of ``seconds``; ``buckets`` has the count for each bound."""

    count: int
    seconds: float
    buckets: Sequence[int]


class MetricBatcher:
    """The batched metrics of one process; ``bounds`` of buckets in seconds, ascending."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self._waiting: list[BatchedMetric] = []

    def metric(self, tell: Callable[[MetricBatch], None]) -> "BatchedMetric":
        """Return a new counter; ``tell`` receives its batches."""
        return BatchedMetric(self, tell)

    def flush(self) -> None:
        """Report all waiting counts."""
        waiting, self._waiting = self._waiting, []
        for metric in waiting:
            metric.flush()

    def wait(self, metric: "BatchedMetric") -> None:
        """Schedule a flush of ``metric``; must be called in a running event loop."""
        if not self._waiting:
            asyncio.get_running_loop().call_later(_WAIT_SECONDS, self.flush)
        self._waiting.append(metric)


class BatchedMetric:
    """A counter that reports to ``tell`` in batches."""

    __slots__ = ("_all", "_bounds", "_buckets", "_count", "_seconds", "_tell")

    def __init__(self, batcher: MetricBatcher, tell: Callable[[MetricBatch], None]) -> None:
        self._all = batcher
        self._bounds = batcher.bounds
        self._tell = tell
        self._count, self._seconds = 0, 0.0
        self._buckets = [0] * (len(self._bounds) + 1)

    def add(self, seconds: float) -> None:
        """Count one event that took ``seconds``."""
        if not self._count:
            self._all.wait(self)
        self._count += 1
        self._seconds += seconds
        self._buckets[bisect_left(self._bounds, seconds)] += 1

    def flush(self) -> None:
        """Report the batch and start a new one."""
        batch = MetricBatch(self._count, self._seconds, self._buckets)
        self._count, self._seconds = 0, 0.0
        self._buckets = [0] * (len(self._bounds) + 1)
        self._tell(batch)
