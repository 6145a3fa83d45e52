"""Passes events to their receivers: metrics, access log, ledger."""

from collections.abc import Callable
from dataclasses import dataclass

from mirror.access_log import AccessLog
from mirror.http.exchange import UPSTREAM_TIME, AccessRecord, Exchange
from mirror.metrics.batch import MetricBatch
from mirror.metrics.metrics import Metrics
from mirror.server.recorder import StatsRecorder


@dataclass(frozen=True, slots=True)
class RequestEvents:
    """Events of requests."""

    metrics: Metrics
    log: AccessLog
    recorder: StatsRecorder

    def request_began(self, exchange: Exchange) -> None:
        """Report the begin of a request."""
        self.log.request_began(exchange)

    def connections_open(self, change: int) -> None:
        """Report that a connection of a client begins or ends."""
        self.metrics.connections_open(change)

    def request_ended(self, ending: AccessRecord) -> None:
        """Report a request that was answered, or whose connection is gone."""
        self.metrics.request_ended(ending)
        self.recorder.request_ended(ending)
        self.log.request_ended(ending)

    def repeated(
        self, ending: AccessRecord, used: Callable[[], None]
    ) -> Callable[[str, float], None]:
        """Return the function to call for every replay: client, seconds to first byte."""
        count = self.metrics.repeated(ending.exchange)
        database = self.recorder.repeated(ending)

        def tell(batch: MetricBatch) -> None:
            used()
            count(batch)

        add = self.metrics.batcher.metric(tell).add
        log = self.log.repeated(ending)

        def ended(client: str, seconds: float) -> None:
            add(seconds)
            database(client)
            log(client, seconds)

        return ended


@dataclass(frozen=True, slots=True)
class UpstreamEvents:
    """Events of exchanges with upstreams."""

    metrics: Metrics
    recorder: StatsRecorder

    def upstream_answered(
        self, upstream: str, kind: str, method: str, code: str, seconds: float
    ) -> None:
        """Report one exchange; ``code`` is ``error`` without a response."""
        time = UPSTREAM_TIME.get()
        if time is not None and kind != "ping":
            time.seconds += seconds
        self.metrics.upstream_answered(upstream, kind, method, code, seconds)
        self.recorder.upstream_answered(upstream, code)

    def upstream_bytes(self, upstream: str, kind: str, count: int) -> None:
        """Report received body bytes."""
        self.metrics.upstream_bytes(upstream, kind, count)
        self.recorder.upstream_bytes(upstream, count)

    def upstream_rate_limit(self, upstream: str, limit: float, remaining: float) -> None:
        """Report the rate limit of an upstream: pulls allowed, pulls remaining."""
        self.metrics.upstream_rate_limit(upstream, limit, remaining)
        self.recorder.upstream_rate_limit(upstream, limit, remaining)

    def upstream_limited(self, upstream: str, seconds: float) -> None:
        """Report that an upstream allows no further requests for so many seconds."""
        self.metrics.upstream_limited(upstream, seconds)

    def upstream_login(self, upstream: str, refused: bool) -> None:
        """Report whether an upstream refuses the mirror's login."""
        self.metrics.upstream_login(upstream, refused)
