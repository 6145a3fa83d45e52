"""One request and its answer: the facts for metrics, access log, Cache-Status and trace spans.

The attributes of spans are named after OpenTelemetry's semantic conventions for HTTP.
"""

import contextlib
import os
import time
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Final, Protocol

from aiohttp import web

from mirror.http.forwarded import Origin
from mirror.oci.digest import Digest
from mirror.pull.outcome import Outcome
from mirror.spans import Attribute, Span
from mirror.store.interface import Manifest

#: Kinds of requests that are not pulls; they must not count in the hit rate.
NO_PULLS: Final = frozenset({"", "ping", "passed", "tunnel", "replica"})


@dataclass(slots=True)
class CacheableResponse:
    """The part of an answer that the response cache may store.

    ``until`` is when it expires (monotonic seconds).  The body is ``body`` or the first ``size``
    bytes of ``file``, a descriptor that this object owns.  Call ``used`` for every repetition.
    """

    digest: Digest
    until: float
    used: Callable[[], None]
    body: bytes = b""
    file: int | None = None
    size: int = 0

    def load(self) -> None:
        """Put the content of the file, which was just sent, in its place; keep it if that fails."""
        if self.file is None:
            return
        with contextlib.suppress(OSError):
            content = os.pread(self.file, self.size, 0)
            if len(content) == self.size:
                self.body = content
                self.close()

    def close(self) -> None:
        """Close the file, unless the response cache has taken it."""
        if self.file is not None:
            os.close(self.file)
            self.file = None


@dataclass(slots=True)
class UpstreamTime:
    """How long upstreams took to answer what was asked for one request, in seconds."""

    seconds: float = 0.0


#: Tasks that begin for a request, such as a fill, inherit the request's object.
UPSTREAM_TIME: Final[ContextVar[UpstreamTime | None]] = ContextVar("upstream_time", default=None)


@dataclass(slots=True)
class Exchange:
    """Filled in while a request is answered; times are monotonic seconds, sizes bytes.

    ``connected`` (proxy mode) is the upstream whose registry the client addresses: the request's
    Authorization field is meant for that registry.  ``private``: the answer depends on the
    client's credentials, so it must not be shown to other clients.  ``broken_off``: the mirror
    ended the body early, since the rest of it cannot be had.  ``user`` is a user of the mirror
    whose password was right, never a name that a registry has to check.
    """

    started: float
    origin: Origin
    user: str = ""
    trace_id: str = ""
    upstream_time: UpstreamTime = field(default_factory=UpstreamTime)
    connected: str = ""
    upstream: str = ""
    repository: str = ""
    reference: str = ""
    digest: str = ""  # of the manifest that the reference resolves to
    manifest: Manifest | None = None
    kind: str = ""
    outcome: Outcome | None = None
    detail: str = ""
    status: int = 0
    sent_bytes: int = 0
    first_byte: float | None = None
    whole: bool = True
    broken_off: bool = False
    repeatable: bool = False  # the response cache may store the answer
    kept: CacheableResponse | None = None
    private: bool = False
    challenged: bool = False  # asked for credentials; clients repeat the request with them

    @property
    def failed(self) -> bool:
        """Whether the client asked for nothing wrong and did not get it."""
        return self.broken_off or self.status >= 500 or self.status == 429

    def set_outcome(self, outcome: Outcome, *, private: bool) -> None:
        """Record the outcome; a private answer is not cached."""
        self.outcome, self.private = outcome, private
        self.repeatable = self.repeatable and not private

    def more(self, count: int) -> None:
        """Add ``count`` bytes of the body to those sent."""
        self.sent_bytes += count

    def answered(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Record the time at which the answer's headers are sent; later calls change nothing."""
        if self.first_byte is None:
            self.first_byte = clock()


@dataclass(frozen=True, slots=True)
class AccessRecord:
    """A finished exchange; ``seconds`` is its duration."""

    exchange: Exchange
    method: str
    path: str
    client: str
    agent: str
    seconds: float


class Observer(Protocol):
    """Receives an event for every request, and for every connection."""

    def connections_open(self, change: int) -> None:
        """Change the number of open connections by ``change``."""

    def request_began(self, exchange: Exchange) -> None:
        """Handle the begin of a request; the exchange changes until the request ends."""

    def request_ended(self, ending: AccessRecord) -> None:
        """Handle the end of a request: it was answered, or its connection was lost."""

    def repeated(
        self, ending: AccessRecord, used: Callable[[], None]
    ) -> Callable[[str, float], None]:
        """Return the function to call for every repetition of a cached response.

        Its arguments are the client's address and the seconds to the first byte.
        """


EXCHANGE: web.RequestKey[Exchange] = web.RequestKey("exchange", Exchange)


#: Paths that monitoring systems request all the time; their spans would be of no use.
UNTRACED: Final = frozenset({"/healthz", "/readyz", "/metrics"})
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT"})
_ROUTES: Final = {
    "ping": "/v2/",
    "manifest": "/v2/{name}/manifests/{reference}",
    "blob": "/v2/{name}/blobs/{digest}",
    "tags": "/v2/{name}/tags/list",
    "referrers": "/v2/{name}/referrers/{digest}",
}


def describe(span: Span, request: web.BaseRequest) -> None:
    """Add the request and its result to a span.

    The query and all header fields but User-Agent are left out: they may hold secrets.
    """
    exchange = request[EXCHANGE]
    method = request.method if request.method in _METHODS else "HTTP"
    route = _ROUTES.get(exchange.kind, "")
    span.rename(f"{method} {route}" if route else method)
    attributes: dict[str, Attribute] = {
        "http.request.method": "_OTHER" if method == "HTTP" else method,
        "http.route": route,
        "http.response.status_code": exchange.status,
        "http.response.body.size": exchange.sent_bytes,
        "url.scheme": exchange.origin.scheme,
        "url.path": request.raw_path.partition("?")[0][:1024],
        "client.address": exchange.origin.client,
        "user_agent.original": request.headers.get("User-Agent", "")[:256],
        "mirror.upstream": exchange.upstream,
        "mirror.repository": exchange.repository,
        "mirror.reference": exchange.reference,
        "mirror.result": "" if exchange.outcome is None else exchange.outcome.value,
        "mirror.detail": exchange.detail,
    }
    span.note({name: value for name, value in attributes.items() if value not in {"", 0}})
    if error := _error(exchange):
        span.fail(error)


def _error(exchange: Exchange) -> str:
    if not exchange.whole:
        return "broken_off"
    return str(exchange.status) if exchange.status >= 500 else ""
