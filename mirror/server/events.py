"""Passes events on to metrics, access log and ledger.

The ledger must not record credentials, query strings or headers.  Of the User-Agent, only the type
of client is recorded; of client addresses, only which are the same; of private images, no name.
Every client can see the ledger.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Final

from mirror.access_log import AccessLog
from mirror.api.parts import client_type
from mirror.http.exchange import NO_PULLS, UPSTREAM_TIME, AccessRecord, Exchange
from mirror.inventory.listing import PRIVATE
from mirror.lru import Lru
from mirror.metrics.batch import MetricBatch
from mirror.metrics.metrics import Metrics
from mirror.oci.manifest import NotAManifest, references
from mirror.oci.media_types import DOCKER_LIST, OCI_INDEX
from mirror.pull.blobs import BlobPulls, DownloadRates
from mirror.pull.outcome import Outcome
from mirror.server.store import Store
from mirror.stats.buffer import Failed, Request
from mirror.stats.ledger import Ledger
from mirror.store.interface import Manifest
from mirror.trouble import Problem, merged

_INDEXES: Final = frozenset({OCI_INDEX, DOCKER_LIST})
_KNOWN_SIZES: Final = 1000
_MOST_REASON: Final = 600  # a refusal by a policy has two digests and ends with the remedy
_WRITE_SECONDS: Final = 1.0


class StatsRecorder:
    """Writes into one ledger."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self._sizes: Lru[str, int] = Lru(_KNOWN_SIZES)
        self._pulls: list[BlobPulls] = []
        self._troubles: list[Callable[[], Iterable[Problem | None]]] = []
        self._speeds = DownloadRates()

    async def run(self) -> None:
        """Write recent events and active downloads every second."""
        while True:
            await asyncio.sleep(_WRITE_SECONDS)
            fills = [fill for pulls in self._pulls for fill in pulls.under_way()]
            await self.ledger.flush(self._speeds.fillings(fills, time.monotonic()), self.problems())

    def problems(self) -> list[Problem]:
        found = (problem for source in self._troubles for problem in source())
        return merged(problem for problem in found if problem is not None)

    def watch_troubles(self, source: Callable[[], Iterable[Problem | None]]) -> None:
        self._troubles.append(source)

    @contextmanager
    def watching(self, pulls: BlobPulls) -> Iterator[None]:
        """Include the downloads of ``pulls`` while the context is open."""
        self._pulls.append(pulls)
        try:
            yield
        finally:
            self._pulls.remove(pulls)

    def request_ended(self, ending: AccessRecord) -> None:
        """Record a request that was answered, or whose connection is gone."""
        exchange = ending.exchange
        if exchange.outcome is None or exchange.kind in NO_PULLS:
            return
        now = time.time()
        if exchange.upstream:  # else no such registry is configured: no upstream is to be charged
            self.ledger.buffer.add(self._request(ending), ending.client, now - ending.seconds, now)
        self.pull_ended(ending)

    def pull_ended(self, ending: AccessRecord) -> None:
        """Record a request if it is a pull that failed."""
        if _is_failed_pull(ending.exchange):
            self.ledger.buffer.failed(self._failed(ending), time.time())

    def repeated(self, ending: AccessRecord) -> Callable[[str], None]:
        """Return a function that counts a replayed response, by client; built once per response."""
        ledger, request, clock = self.ledger, self._request(ending), time.time

        def count(client: str) -> None:
            ledger.buffer.repeat(request, client, clock())

        return count

    def upstream_answered(self, upstream: str, code: str) -> None:
        """Record the status of an upstream's response, ``error`` if there was none."""
        self.ledger.buffer.answers[upstream] = code, time.time()

    def upstream_bytes(self, upstream: str, count: int) -> None:
        self.ledger.buffer.got(upstream, count)

    def upstream_rate_limit(self, upstream: str, limit: float, remaining: float) -> None:
        """Record the rate limit of an upstream: pulls allowed, pulls remaining."""
        self.ledger.buffer.limits[upstream] = limit, remaining

    def _failed(self, ending: AccessRecord) -> Failed:
        exchange = ending.exchange
        outcome = Outcome.ERROR if exchange.broken_off else exchange.outcome
        reason = exchange.detail or f"answered {exchange.status}"
        if exchange.private:  # the text names the repository
            reason = f"refused or not found for this client ({exchange.status})"
        return Failed(
            upstream=exchange.upstream,
            repository=PRIVATE if exchange.private else exchange.repository,
            reference=PRIVATE if exchange.private else exchange.reference,
            client=client_type(ending.agent),
            result="" if outcome is None else outcome.value,
            # One text that the database refuses would keep all others from it.
            reason=reason[:_MOST_REASON].encode(errors="backslashreplace").decode(),
        )

    def _request(self, ending: AccessRecord) -> Request:
        exchange = ending.exchange
        is_tag = exchange.kind == "manifest" and ":" not in exchange.reference
        return Request(
            upstream=exchange.upstream,
            repository=PRIVATE if exchange.private else exchange.repository,
            reference=PRIVATE if exchange.private and is_tag else exchange.reference,
            kind=exchange.kind,
            result="" if exchange.outcome is None else exchange.outcome.value,
            agent=client_type(ending.agent),
            size=exchange.sent_bytes,
            head=ending.method == "HEAD",
            digest=exchange.digest,
            content_bytes=self._content_bytes(exchange.manifest),
        )

    def _content_bytes(self, manifest: Manifest | None) -> int:
        """Total size of config and layers; parsing a manifest of 10 KiB takes 50 us."""
        if manifest is None or manifest.media_type in _INDEXES:
            return 0
        name = str(manifest.digest)
        size = self._sizes.get(name)
        if size is None:
            try:
                size = sum(part.size for part in references(manifest.body))
            except NotAManifest:
                size = 0
            size = min(size, 2**62)  # SQLite's integers end at 2**63
            self._sizes.put(name, size)
        return size


def _is_failed_pull(exchange: Exchange) -> bool:
    """Whether a request is a pull that failed, as opposed to a question with the answer no.

    Clients ask for signatures under tags that begin with ``sha256-``, and mostly there are none.
    """
    if exchange.kind not in {"manifest", "blob"} or exchange.challenged:
        return False
    if exchange.outcome is Outcome.NEGATIVE:
        return exchange.kind == "manifest" and not exchange.reference.startswith("sha256-")
    return exchange.broken_off or exchange.outcome in {Outcome.DENIED, Outcome.ERROR}


@asynccontextmanager
async def opened_stats(store: Store) -> AsyncIterator[StatsRecorder]:
    """Record statistics while the context is open; errors of the ledger do not stop the mirror."""
    ledger = Ledger(store.layout.ledger)
    recorder = StatsRecorder(ledger)
    writing = asyncio.create_task(recorder.run(), name="ledger")
    try:
        yield recorder
    finally:
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
        await ledger.close()


@dataclass(frozen=True, slots=True)
class RequestEvents:
    """Events of requests."""

    metrics: Metrics
    log: AccessLog
    recorder: StatsRecorder

    def request_began(self, exchange: Exchange) -> None:
        self.log.request_began(exchange)

    def connections_open(self, change: int) -> None:
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
        self.metrics.upstream_login(upstream, refused)
