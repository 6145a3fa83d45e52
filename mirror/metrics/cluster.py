"""The metrics of a cluster; without one they do not exist."""

from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class ClusterMetrics:
    """What this process asks of the tiers that all mirrors of a cluster share."""

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels, registry=registry)

        def gauge(
            name: str,
            text: str,
            *labels: str,
            over_workers: Literal["livesum", "mostrecent"] = "mostrecent",
        ) -> Gauge:
            return Gauge(name, text, labels, registry=registry, multiprocess_mode=over_workers)

        self._requests = counter(
            "mirror_tier_requests_total",
            "Requests to what the mirrors of a cluster share.",
            *("tier", "operation", "result"),
        )
        self._seconds = Histogram(
            "mirror_tier_request_seconds",
            "Seconds to the answer of a tier; of an upload to its end.",
            ("tier", "operation"),
            registry=registry,
            buckets=_BUCKETS,
        )
        self._bytes = counter(
            "mirror_tier_bytes_total", "Bytes from and to a tier.", "tier", "direction"
        )
        self._up = gauge("mirror_tier_up", "Whether a tier answers (1), or not (0).", "tier")
        self._uploads = counter(
            "mirror_uploads_total", "Uploads of blobs to the object store.", "result"
        )
        self._waiting = gauge(
            "mirror_uploads_waiting",
            "Blobs that are not yet in the object store.",
            over_workers="livesum",
        )
        self._leases = counter(
            "mirror_leases_total",
            "Downloads by how this mirror found the one that leads them.",
            "result",
        )
        self._held = gauge(
            "mirror_tier_stored_bytes",
            "Bytes of objects in a tier, at the last sweep of this mirror.",
            "tier",
        )
        self._evictions = counter(
            "mirror_tier_evictions_total", "Objects that this mirror evicted from a tier.", "tier"
        )
        self._evicted = counter(
            "mirror_tier_evicted_bytes_total", "Bytes that this mirror evicted from a tier.", "tier"
        )

    def cluster_lease(self, result: str) -> None:
        """Count a download; ``result``: leads, follows, takes_over, hands_over or unknown."""
        self._leases.labels(result).inc()

    # For the rest see mirror.cluster.tier.Observer.

    def tier_answered(self, tier: str, operation: str, result: str, seconds: float) -> None:
        self._requests.labels(tier, operation, result).inc()
        self._seconds.labels(tier, operation).observe(seconds)

    def tier_bytes(self, tier: str, direction: str, count: int) -> None:
        self._bytes.labels(tier, direction).inc(count)

    def tier_up(self, tier: str, up: bool) -> None:
        self._up.labels(tier).set(up)

    def uploads_waiting(self, change: int) -> None:
        self._waiting.inc(change)

    def upload_ended(self, result: str) -> None:
        self._uploads.labels(result).inc()

    def tier_holds(self, tier: str, size: int) -> None:
        self._held.labels(tier).set(size)

    def tier_evicted(self, tier: str, objects: int, size: int) -> None:
        self._evictions.labels(tier).inc(objects)
        self._evicted.labels(tier).inc(size)
