"""All metrics of the mirror, in one table.

Labels have a bounded number of values: never a repository, a tag, a digest or a client's address.
The other packages call the methods below the table, and do not depend on Prometheus.
"""

import logging
import math
import struct
import time
from collections.abc import Callable
from typing import Final, Literal

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.exposition import choose_encoder

from mirror import spans
from mirror.http.exchange import NO_PULLS, AccessRecord, Exchange
from mirror.metrics.batch import MetricBatch, MetricBatcher
from mirror.metrics.shared_files import Lifecycle, SharedFigures, WorkerProcesses, use_shared_files

_FIRST_BYTE_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_TRANSFER_BUCKETS = (*_FIRST_BYTE_BUCKETS, 60, 120, 300, 600, 1800)
#: The label of all registries that are not configured: clients choose their names.
_UNKNOWN: Final = "unknown"
_OPENMETRICS: Final = "application/openmetrics-text"

_log = logging.getLogger(__name__)

GaugeMode = Literal["livesum", "max", "mostrecent"]


class Metrics:
    """The metrics of one process; it renders the sums over all workers."""

    def __init__(self, version: str) -> None:
        # Otherwise the library adds a second series per counter.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._files = use_shared_files()
        registry = self.registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.batcher = MetricBatcher(_TRANSFER_BUCKETS)
        self.lifecycle = Lifecycle(registry)
        if self._files is None:  # otherwise the first process reports it
            self.lifecycle.reloaded(successful=True)
        self._refused: set[str] = set()  # upstreams that refuse the mirror's login

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels, registry=registry)

        def gauge(
            name: str, text: str, *labels: str, over_workers: GaugeMode = "mostrecent"
        ) -> Gauge:
            return Gauge(name, text, labels, registry=registry, multiprocess_mode=over_workers)

        def histogram(
            name: str, text: str, *labels: str, buckets: tuple[float, ...] = _FIRST_BYTE_BUCKETS
        ) -> Histogram:
            return Histogram(name, text, labels, registry=registry, buckets=buckets)

        self._requests = counter(
            "mirror_requests_total", "Requests of clients.", "upstream", "kind", "result"
        )
        self._request_seconds = histogram(
            "mirror_request_seconds", "Seconds to the first byte of an answer.", "kind", "result"
        )
        self._transfer_seconds = histogram(
            "mirror_transfer_seconds",
            "Seconds to the last byte of an answer with a body.",
            *("kind", "result"),
            buckets=_TRANSFER_BUCKETS,
        )
        self._connections = gauge(
            "mirror_connections", "Open connections of clients.", over_workers="livesum"
        )
        self._served_bytes = counter(
            "mirror_served_bytes_total", "Body bytes sent to clients.", "upstream", "kind"
        )
        self._upstream_bytes = counter(
            "mirror_upstream_bytes_total", "Body bytes got from upstream.", "upstream", "kind"
        )
        self._upstream_requests = counter(
            "mirror_upstream_requests_total",
            "Requests to upstream, its token service and where it redirects.",
            *("upstream", "kind", "method", "code"),
        )
        self._upstream_seconds = histogram(
            "mirror_upstream_request_seconds",
            "Seconds to the first byte of upstream's answer.",
            *("upstream", "kind"),
        )
        self._fills = counter("mirror_fills_total", "Downloads ended.", "upstream", "result")
        self._filling = gauge(
            "mirror_fills_in_progress", "Downloads under way.", over_workers="livesum"
        )
        self._waiting = gauge(
            "mirror_clients_waiting",
            "Clients reading a blob as it arrives.",
            over_workers="livesum",
        )
        self._cache_bytes = gauge(
            "mirror_cache_bytes",
            "Bytes of blobs, manifests and partial files, in whole blocks of the disk.",
        )
        self._cache_overhead_bytes = gauge(
            "mirror_cache_overhead_bytes",
            "Bytes of databases and directories; with mirror_cache_bytes all that max_size bounds.",
        )
        self._cache_max_bytes = gauge("mirror_cache_max_bytes", "Bytes the cache may have.")
        self._cache_objects = gauge("mirror_cache_objects", "Blobs and manifests in the cache.")
        self._disk_free_bytes = gauge(
            "mirror_disk_free_bytes", "Bytes that the mirror's user may use on the cache's disk."
        )
        self._evictions = counter("mirror_evictions_total", "Objects evicted to make room.")
        self._evicted_bytes = counter("mirror_evicted_bytes_total", "Bytes evicted to make room.")
        self._limit = gauge(
            "mirror_upstream_ratelimit_limit", "Pulls upstream allows per window.", "upstream"
        )
        self._remaining = gauge(
            "mirror_upstream_ratelimit_remaining", "Pulls upstream still allows.", "upstream"
        )
        self._limited_until = gauge(
            "mirror_upstream_ratelimit_until_seconds",
            "Unix time until which upstream is not asked, after a 429.",
            "upstream",
            over_workers="max",
        )
        self._up = gauge(
            "mirror_upstream_up",
            "Whether upstream answers, and accepts the mirror's login (1), or not (0).",
            "upstream",
        )
        self._decisions = counter(
            "mirror_policy_decisions_total",
            "What blocks, pins and policies decided about requests; a repeated answer counts once.",
            *("upstream", "decision"),
        )
        self._proxy_connections = counter(
            "mirror_proxy_connections_total",
            "Servers that clients asked the proxy for; upstream where the mirror answers for it.",
            *("upstream", "result"),
        )
        self._tunnels = gauge(
            "mirror_tunnels", "Connections that are let through.", over_workers="livesum"
        )
        self._tunnel_bytes = counter(
            "mirror_tunnel_bytes_total", "Bytes that were let through.", "direction"
        )
        self._log_dropped = counter(
            "mirror_log_dropped_total",
            "Log records that were not written: standard error was full, or failed.",
        )
        self._log_dropped_told = 0
        build = gauge("mirror_build_info", "The version that runs.", "version", over_workers="max")
        build.labels(version).set(1)

    def request_ended(self, ending: AccessRecord) -> None:
        """Count a request that was answered or whose connection was lost."""
        exchange = ending.exchange
        if exchange.outcome is None or exchange.kind in NO_PULLS:
            return
        result, upstream = exchange.outcome.value, exchange.upstream or _UNKNOWN
        self._requests.labels(upstream, exchange.kind, result).inc()
        self._served_bytes.labels(upstream, exchange.kind).inc(exchange.sent_bytes)
        exemplar = _exemplar()
        if exchange.first_byte is not None:
            seconds = exchange.first_byte - exchange.started
            self._request_seconds.labels(exchange.kind, result).observe(seconds, exemplar)
        if exchange.sent_bytes and exchange.whole and not exchange.broken_off:
            transfer = self._transfer_seconds.labels(exchange.kind, result)
            transfer.observe(ending.seconds, exemplar)

    def repeated(self, exchange: Exchange) -> Callable[[MetricBatch], None]:
        """Return a function that counts batches of one cached response.

        One function serves many batches: the lookup of the metrics by their labels takes 4 us.
        """
        result = "" if exchange.outcome is None else exchange.outcome.value
        upstream = exchange.upstream or _UNKNOWN
        requests = self._requests.labels(upstream, exchange.kind, result)
        served = self._served_bytes.labels(upstream, exchange.kind)
        size = exchange.sent_bytes
        # A cached response is written at once: its first byte leaves with its last one.
        histograms = [self._request_seconds, *([self._transfer_seconds] if size else ())]
        seconds = [each.labels(exchange.kind, result) for each in histograms]

        def count(batch: MetricBatch) -> None:
            requests.inc(batch.count)
            served.inc(size * batch.count)
            for histogram in seconds:
                _observe(histogram, batch)

        return count

    def upstream_answered(
        self, upstream: str, kind: str, method: str, code: str, seconds: float
    ) -> None:
        """Count one request to upstream; ``code`` is ``error`` if the request failed."""
        self._upstream_requests.labels(upstream, kind, method, code).inc()
        self._upstream_seconds.labels(upstream, kind).observe(seconds, _exemplar())
        down = code == "error" or code.startswith("5") or upstream in self._refused
        self._up.labels(upstream).set(not down)

    def upstream_login(self, upstream: str, refused: bool) -> None:
        """Record whether an upstream refuses the mirror's login; pulls then fail as if down."""
        if refused:
            self._refused.add(upstream)
        elif upstream not in self._refused:
            return
        else:
            self._refused.remove(upstream)
        self._up.labels(upstream).set(not refused)

    def upstream_limited(self, upstream: str, seconds: float) -> None:
        """Record that an upstream allows no further requests for so many seconds."""
        self._limited_until.labels(upstream).set(time.time() + seconds)

    def upstream_gone(self, upstream: str) -> None:
        """Drop the gauges of a former upstream; otherwise alerts on them would never end."""
        self._refused.discard(upstream)
        for gauge in (self._up, self._limit, self._remaining, self._limited_until):
            if self._files is not None:  # shared values cannot be removed
                # The maximum over all workers would not change to NaN.
                gauge.labels(upstream).set(0 if gauge is self._limited_until else math.nan)
            else:
                gauge.remove(upstream)

    def upstream_bytes(self, upstream: str, kind: str, count: int) -> None:
        self._upstream_bytes.labels(upstream, kind).inc(count)

    def upstream_rate_limit(self, upstream: str, limit: float, remaining: float) -> None:
        """Record the rate limit that upstream reported, in pulls."""
        self._limit.labels(upstream).set(limit)
        self._remaining.labels(upstream).set(remaining)

    def fill_started(self) -> None:
        self._filling.inc()

    def fill_ended(self, upstream: str, result: str) -> None:
        self._filling.dec()
        self._fills.labels(upstream, result).inc()

    def manifest_mismatched(self, upstream: str) -> None:
        """Count a manifest that did not hash to its digest."""
        self._fills.labels(upstream, "digest_mismatch").inc()

    def clients_waiting(self, change: int) -> None:
        """Change the number of clients that read a blob during its download."""
        self._waiting.inc(change)

    def connections_open(self, change: int) -> None:
        self._connections.inc(change)

    def evicted(self, size: int) -> None:
        """Count the eviction of an object of ``size`` bytes."""
        self._evictions.inc()
        self._evicted_bytes.inc(size)

    def cache_holds(
        self, used_bytes: int, overhead_bytes: int, objects: int, max_bytes: int, free_bytes: int
    ) -> None:
        """Record the use of the cache and the free space on its disk, in bytes."""
        self._cache_bytes.set(used_bytes)
        self._cache_overhead_bytes.set(overhead_bytes)
        self._cache_objects.set(objects)
        self._cache_max_bytes.set(max_bytes)
        self._disk_free_bytes.set(free_bytes)

    def log_dropped(self, total: int) -> None:
        """Record that ``total`` log records were dropped since the start of the process."""
        self._log_dropped.inc(total - self._log_dropped_told)
        self._log_dropped_told = total

    def policy_decided(self, upstream: str, decision: str) -> None:
        self._decisions.labels(upstream, decision).inc()

    def proxy_connected(self, upstream: str, result: str) -> None:
        """Count a proxy connection; ``result``: intercepted, tunnelled, denied or failed."""
        self._proxy_connections.labels(upstream or _UNKNOWN, result).inc()

    def tunnels_open(self, change: int) -> None:
        self._tunnels.inc(change)

    def tunnel_ended(self, to_client: int, to_server: int) -> None:
        self._tunnel_bytes.labels("to_client").inc(to_client)
        self._tunnel_bytes.labels("to_server").inc(to_server)

    def rendered(self, accept: str = "") -> tuple[bytes, str]:
        """Return the metrics and their content type.

        The format is OpenMetrics if the Accept field ``accept`` names it, else Prometheus's text
        format, which has no exemplars.
        """
        self.batcher.flush()
        wanted = f"{_OPENMETRICS}; version=1.0.0" if _OPENMETRICS in accept else ""
        encode, content_type = choose_encoder(wanted)
        if self._files is not None:
            try:
                registry = CollectorRegistry()
                registry.register(SharedFigures(self._files))
                registry.register(WorkerProcesses())
                if told := encode(registry):
                    return told, content_type
            except (OSError, ValueError, RuntimeError, struct.error) as error:
                _log.warning("/metrics shows the figures of one worker only: %s", error)
        return encode(self.registry), content_type


def _observe(histogram: Histogram, batch: MetricBatch) -> None:
    """Count a batch: the same as many calls of `observe`; tests/metrics compares the two."""
    histogram._sum.inc(batch.seconds)
    last = len(histogram._buckets) - 1  # of this histogram, which may have fewer than the batch
    for number, more in enumerate(batch.buckets):
        if more:
            histogram._buckets[min(number, last)].inc(more)


def _exemplar() -> dict[str, str] | None:
    """Return the ID of the current trace, if the trace is collected."""
    span = spans.current()
    if span is spans.NOTHING:
        return None
    _, trace, _, flags = span.headers()["traceparent"].split("-")  # W3C Trace Context
    return {"trace_id": trace} if flags == "01" else None
