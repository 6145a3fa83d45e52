"""A collector of spans: OTLP over HTTP, decoded with OpenTelemetry's own messages."""

from dataclasses import dataclass, field
from typing import Any, Self

from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest


@dataclass(frozen=True)
class Collected:
    """A span that arrived."""

    name: str
    kind: str
    id: bytes
    parent: bytes
    trace: bytes
    links: tuple[bytes, ...]
    failed: bool
    attributes: dict[str, Any]


@dataclass
class Collector:
    """Listens on a free port of the loopback."""

    spans: list[Collected] = field(default_factory=list)
    resource: dict[str, Any] = field(default_factory=dict)
    status: int = 200
    asked: int = 0
    authorizations: set[str] = field(default_factory=set)

    def named(self, name: str) -> list[Collected]:
        return [span for span in self.spans if span.name == name]

    def one(self, name: str, **attributes: Any) -> Collected:
        wanted = {key.replace("__", "."): value for key, value in attributes.items()}
        (span,) = (span for span in self.named(name) if wanted.items() <= span.attributes.items())
        return span

    def below(self, span: Collected) -> list[Collected]:
        return [other for other in self.spans if other.parent == span.id]

    async def __aenter__(self) -> Self:
        self._runner = web.ServerRunner(web.Server(self._collect), shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.endpoint = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    async def _collect(self, request: web.BaseRequest) -> web.Response:
        self.asked += 1
        self.authorizations.add(request.headers.get("Authorization", ""))
        assert (request.method, request.path) == ("POST", "/v1/traces")
        if self.status != 200:
            return web.Response(status=self.status)
        sent = ExportTraceServiceRequest.FromString(await request.read())
        for resource in sent.resource_spans:
            self.resource = _values(resource.resource.attributes)
            for scope in resource.scope_spans:
                self.spans += map(_collected, scope.spans)
        return web.Response(content_type="application/x-protobuf")


def _collected(span: Any) -> Collected:
    kinds = {1: "internal", 2: "server", 3: "client"}
    return Collected(
        span.name,
        kinds[span.kind],
        span.span_id,
        span.parent_span_id,
        span.trace_id,
        tuple(link.span_id for link in span.links),
        span.status.code == 2,
        _values(span.attributes),
    )


def _values(attributes: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}
