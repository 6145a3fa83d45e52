"""Spans through OpenTelemetry, to a collector over OTLP/HTTP.  Only this module uses either.

A thread delivers the spans from a bounded queue: a slow or unreachable collector costs spans and
one log line, but never delays a pull.
"""

import asyncio
import logging
import threading
from collections.abc import Mapping, Sequence
from typing import Final

import requests
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ParentBased, TraceIdRatioBased
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from mirror import spans
from mirror.spans import Attribute

_DELIVERY_SECONDS: Final = 5.0
_DELAY_MILLISECONDS: Final = 1000
#: How long a stop waits for the delivery of spans; the remaining ones are lost.
_FLUSH_SECONDS: Final = 3.0
_PROPAGATOR: Final = TraceContextTextMapPropagator()

_log = logging.getLogger(__name__)


class Span:
    """A span of OpenTelemetry; see :class:`mirror.spans.Span`."""

    def __init__(self, tracer: trace.Tracer, span: trace.Span) -> None:
        self._tracer = tracer
        self.span = span

    @property
    def trace_id(self) -> str:
        """The trace's ID in hexadecimal; empty if this trace is not part of the sample."""
        context = self.span.get_span_context()
        return trace.format_trace_id(context.trace_id) if context.trace_flags.sampled else ""

    def child(self, name: str, *, outgoing: bool = False) -> "Span":
        kind = trace.SpanKind.CLIENT if outgoing else trace.SpanKind.INTERNAL
        context = trace.set_span_in_context(self.span)
        return Span(self._tracer, self._tracer.start_span(name, context, kind))

    def rename(self, name: str) -> None:
        self.span.update_name(name)

    def note(self, attributes: Mapping[str, Attribute]) -> None:
        self.span.set_attributes(attributes)

    def link(self, other: spans.Span) -> None:
        if isinstance(other, Span):
            self.span.add_link(other.span.get_span_context())

    def fail(self, error_type: str) -> None:
        self.span.set_attribute("error.type", error_type)
        self.span.set_status(trace.StatusCode.ERROR)

    def end(self) -> None:
        self.span.end()

    def headers(self) -> Mapping[str, str]:
        """``traceparent`` only: the contents of ``tracestate`` must not reach an upstream."""
        fields: dict[str, str] = {}
        _PROPAGATOR.inject(fields, trace.set_span_in_context(self.span))
        return {name: value for name, value in fields.items() if name == "traceparent"}


class Tracing:
    """Collects and delivers the spans of a process."""

    def __init__(
        self, endpoint: str, sample: float, service: str, version: str, proxy: str = ""
    ) -> None:
        """Deliver the share ``sample`` (0 to 1) of traces to ``endpoint``, through ``proxy``."""
        _silence()
        # A client's request to be traced counts only within the share; its refusal always counts.
        share = TraceIdRatioBased(sample)
        sampler = ParentBased(
            share, remote_parent_sampled=share, remote_parent_not_sampled=ALWAYS_OFF
        )
        resource = Resource.create({"service.name": service, "service.version": version})
        provider = TracerProvider(sampler, resource, shutdown_on_exit=False)
        exporter = _Exporter(endpoint, proxy)
        self._processor = BatchSpanProcessor(exporter, schedule_delay_millis=_DELAY_MILLISECONDS)
        provider.add_span_processor(self._processor)
        self._tracer = provider.get_tracer("mirror", version)

    def request(self, name: str, traceparent: str) -> Span:
        """Begin the span of a client's request, as a child of ``traceparent`` unless empty."""
        context = _PROPAGATOR.extract({"traceparent": traceparent}) if traceparent else None
        return Span(self._tracer, self._tracer.start_span(name, context, trace.SpanKind.SERVER))

    async def close(self) -> None:
        """Deliver the remaining spans, for at most ``_FLUSH_SECONDS``."""
        done = asyncio.Event()
        loop = asyncio.get_running_loop()

        def deliver() -> None:
            self._processor.shutdown()
            if not loop.is_closed():
                loop.call_soon_threadsafe(done.set)

        try:
            threading.Thread(target=deliver, name="spans", daemon=True).start()
            async with asyncio.timeout(_FLUSH_SECONDS):
                await done.wait()
        except (TimeoutError, RuntimeError):  # or the system refuses the thread
            _log.warning("spans that were not delivered within %.0f s are lost", _FLUSH_SECONDS)


class _Exporter(SpanExporter):
    """OpenTelemetry's exporter; logs once when delivery fails, and once when it works again."""

    def __init__(self, endpoint: str, proxy: str) -> None:
        self._endpoint = endpoint
        session = requests.Session()
        session.trust_env = False  # else credentials from ~/.netrc go to the collector
        session.proxies = dict.fromkeys(("http", "https"), proxy) if proxy else {}
        self._exporter = OTLPSpanExporter(endpoint, timeout=_DELIVERY_SECONDS, session=session)
        self._failing = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self._exporter.export(spans)
        failing = result is not SpanExportResult.SUCCESS
        if failing and not self._failing:
            _log.warning("spans cannot be delivered to %s, and are dropped", self._endpoint)
        elif self._failing and not failing:
            _log.info("spans are delivered to %s again", self._endpoint)
        self._failing = failing
        return result

    def shutdown(self) -> None:
        """Cancel a delivery that waits for its next attempt."""
        self._exporter.shutdown()


def _silence() -> None:
    """Silence OpenTelemetry and its HTTP client: they log each attempt, once a second.

    Each of their log records has a traceback.
    """
    for name in ("opentelemetry", "urllib3"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
