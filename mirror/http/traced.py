"""Trace spans of requests, named after OpenTelemetry's semantic conventions for HTTP."""

from typing import Final

from aiohttp import web

from mirror.http.exchange import EXCHANGE, Exchange
from mirror.spans import Attribute, Span

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
