"""The registry API: one small handler per kind of request.  All decisions are made in ``pull``."""

import math
import os
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from functools import partial

from aiohttp import web
from yarl import URL

from mirror.api.client_credentials import ClientCredentials
from mirror.api.parts import Parts, wanted_ranges
from mirror.descriptor import FileRange
from mirror.http.body import answer_with, delimit, stream
from mirror.http.exchange import EXCHANGE, CacheableResponse, Exchange
from mirror.http.response_cache import SMALL_FILE_BYTES
from mirror.http.responses import API_VERSION, cache_status, digest_fields, not_modified
from mirror.http.sendfile import Sender
from mirror.oci.digest import Digest
from mirror.oci.endpoint import (
    NOT_A_PROXY,
    BlobEndpoint,
    ManifestEndpoint,
    Ping,
    ReferrersEndpoint,
    TagsEndpoint,
    parse_endpoint,
)
from mirror.oci.endpoint import Content as ContentEndpoint
from mirror.oci.errors import ErrorCode, OciError
from mirror.oci.media_types import OCI_INDEX
from mirror.pull.body import Content
from mirror.pull.gate import GatedBlobs
from mirror.pull.gated_manifests import GatedManifests
from mirror.pull.listings import LargeListing, ListingAnswer, ListingPulls
from mirror.pull.outcome import Outcome
from mirror.pull.private import AuthorizedListings
from mirror.shares import SMALL_BYTES
from mirror.upstream.errors import RefusedError
from mirror.upstream.routing import ForbiddenError, Router, Target

#: For shared caches that store responses to requests with Authorization (RFC 9111, 5.2.2.7).
_FOR_ONE_CLIENT = {"Cache-Control": "private"}
_MOST_QUERY_BYTES = 4096
#: A redirect is for one client, and is valid for minutes.
_NOT_STORED = {"Cache-Control": "no-store"}
#: Requests for a part of a blob, or for a blob that the client may have.
_NOT_REDIRECTED = ("Range", "If-None-Match")


@dataclass(frozen=True, slots=True)
class RegistryHandler:
    """Answers requests below ``/v2/``.

    Without ``client_credentials`` the credentials of clients are ignored.  ``pushed`` maps a
    target's record to the mark of the last push through this mirror; None if no push is possible.
    ``kind`` replaces the kinds of requests that are no pulls of clients.
    """

    directory: Router
    blobs: GatedBlobs
    manifests: GatedManifests
    listings: ListingPulls | AuthorizedListings
    sender: Sender
    client_credentials: ClientCredentials | None = None
    pushed: Callable[[str], str] | None = None
    kind: str = ""

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer one request of the registry API.

        Raises:
            OciError, InvalidName, UnknownRegistryError, UpstreamError: see ``responses.error_of``.
        """
        exchange = request[EXCHANGE]
        # Only clients of a proxy send whole URLs; they mean another server than this one.
        if not exchange.connected and _is_url(request.raw_path):
            raise OciError(ErrorCode.UNSUPPORTED, NOT_A_PROXY, status=421)
        endpoint = parse_endpoint(request.method, raw_path(request))
        exchange.kind = self.kind or endpoint.kind
        # A replica signs the time: no request of its comes twice.
        exchange.repeatable = exchange.repeatable and not self.kind
        try:
            if isinstance(endpoint, Ping):
                return await self._ping(request, endpoint)
            _note_endpoint(exchange, endpoint)
            target = self._target(request, endpoint)
            exchange.upstream, exchange.repository = target.upstream, target.repository
            # Until the outcome says otherwise, and so in errors: the client may name a secret.
            exchange.private = self._is_private(exchange)
            return await self._content(request, target, endpoint)
        except ForbiddenError:
            exchange.private = True
            raise
        except RefusedError as error:
            exchange.private = True
            if self.client_credentials is None or exchange.first_byte is not None:
                raise
            given = request.headers.get("Authorization", "")
            exchange.challenged = not given
            raise self.client_credentials.refusal(exchange, error, given) from error

    def is_limited(self, upstream: str) -> bool:
        """Whether some content of an upstream is not given out.

        Raises:
            UnknownRegistryError: the upstream is not configured.
        """
        return self.directory.is_limited(upstream) or self.manifests.gate.limits(upstream)

    def check(self, request: web.BaseRequest, endpoint: ManifestEndpoint | BlobEndpoint) -> None:
        """Check content that another server is about to be asked for.

        Raises:
            PolicyError: the mirror does not give it out.
            InvalidName, UnknownRegistryError: as for :meth:`answer`.
        """
        what = endpoint.digest if isinstance(endpoint, BlobEndpoint) else endpoint.reference
        self.manifests.gate.check(self._target(request, endpoint), what)

    def _is_private(self, exchange: Exchange) -> bool:
        """Whether the upstream of a request takes the credentials of its client."""
        credentials = self.client_credentials
        return credentials is not None and credentials.upstream(exchange) == exchange.upstream

    async def _content(
        self, request: web.BaseRequest, target: Target, endpoint: ContentEndpoint
    ) -> web.StreamResponse:
        if isinstance(endpoint, ManifestEndpoint):
            return await self._manifest(request, target, endpoint)
        if isinstance(endpoint, BlobEndpoint):
            return await self._blob(request, target, endpoint.digest)
        return await self._listing(request, target, endpoint)

    async def _ping(self, request: web.BaseRequest, endpoint: Ping) -> web.Response:
        exchange = request[EXCHANGE]
        named = self.directory.upstream(endpoint.prefix) if endpoint.prefix else ""
        if self.client_credentials is not None:
            meant = named or self.client_credentials.upstream(exchange)
            given = request.headers.get("Authorization", "")
            await self.client_credentials.ping(exchange, meant, given)
        return web.json_response({}, headers=API_VERSION)

    def _target(self, request: web.BaseRequest, endpoint: ContentEndpoint) -> Target:
        exchange = request[EXCHANGE]
        target = self.directory.resolve(
            endpoint.name,
            prefix=endpoint.prefix,
            namespace=_namespace(request),
            host=exchange.origin.host,
            connected=exchange.connected,
        )
        if self.pushed is not None:
            target = replace(target, since=self.pushed(target.record))
        if self.client_credentials is None:
            return target
        given = request.headers.get("Authorization", "")
        principal = self.client_credentials.principal(exchange, target.upstream, given)
        return target if principal is None else replace(target, principal=principal)

    async def _manifest(
        self, request: web.BaseRequest, target: Target, endpoint: ManifestEndpoint
    ) -> web.StreamResponse:
        exchange = request[EXCHANGE]
        accept = ", ".join(request.headers.getall("Accept", []))
        if request.method == "HEAD":
            known = await self.manifests.head(target, endpoint.reference, accept)
            body, descriptor = b"", known.descriptor
            outcome, detail, until = known.outcome, known.detail, known.until
            private = known.private
            digest, media_type, size = descriptor.digest, descriptor.media_type, descriptor.size
        else:
            answer = await self.manifests.get(target, endpoint.reference, accept)
            manifest, outcome, detail = answer.manifest, answer.outcome, answer.detail
            until, private, exchange.manifest = answer.until, answer.private, manifest
            digest, media_type, body = manifest.digest, manifest.media_type, manifest.body
            size = len(body)
        exchange.set_outcome(outcome, private=private)
        exchange.detail, exchange.digest = detail, str(digest)
        stored = request.method == "GET"
        headers = _fields(request, digest, cache_status(outcome, stored=stored, detail=detail))
        if not_modified(request, digest):
            return web.Response(status=304, headers=headers)
        headers |= {"Content-Type": media_type, "Content-Length": str(size)}
        # Another process may handle a push: a cached response would not notice it.
        lasting = until == math.inf or not exchange.connected
        small = len(body) <= SMALL_BYTES  # a cached response is buffered in memory per client
        if exchange.repeatable and outcome is Outcome.HIT and until and lasting and small:
            used = partial(self.manifests.touch, digest)
            exchange.kept = CacheableResponse(digest, until, used, body, size=len(body))
        return await answer_with(request, headers, body, self.sender)

    async def _blob(
        self, request: web.BaseRequest, target: Target, digest: Digest
    ) -> web.StreamResponse:
        exchange = request[EXCHANGE]
        if request.method == "HEAD":
            head = await self.blobs.head(target, digest)
            exchange.set_outcome(head.outcome, private=head.private)
            fields = _fields(request, digest, cache_status(head.outcome))
            if not_modified(request, digest):
                return web.Response(status=304, headers=fields)
            return _blob_response(200, fields, head.size)
        redirect = await self._redirect(request, target, digest)
        if redirect is not None:
            return redirect
        answer = await self.blobs.get(target, digest)
        exchange.set_outcome(answer.outcome, private=answer.private)
        status = cache_status(answer.outcome, stored=answer.stored, detail=answer.place)
        fields = _fields(request, digest, status)
        content = answer.content
        try:
            if exchange.repeatable and answer.outcome is Outcome.HIT and content.file:
                exchange.kept = self._kept(digest, content.file)
            return await self._send_blob(request, answer.content, digest, fields)
        finally:
            await answer.content.close()

    async def _redirect(
        self, request: web.BaseRequest, target: Target, digest: Digest
    ) -> web.Response | None:
        """Send a client that asks for a whole blob elsewhere; None if it gets the blob here."""
        exchange = request[EXCHANGE]
        if exchange.connected or any(field in request.headers for field in _NOT_REDIRECTED):
            return None
        address = await self.blobs.address(target, digest, exchange.origin.client)
        if address is None:
            return None
        exchange.set_outcome(Outcome.HIT, private=False)
        exchange.detail = "redirect"
        fields = _fields(request, digest, cache_status(Outcome.HIT, detail=exchange.detail))
        return web.Response(status=307, headers={**fields, **_NOT_STORED, "Location": address})

    def _kept(self, digest: Digest, stored: FileRange) -> CacheableResponse | None:
        if stored.length > SMALL_FILE_BYTES:
            return None
        used = partial(self.blobs.touch, digest)
        try:
            file = os.dup(stored.descriptor.fileno())
        except OSError:  # too many open files: the ordinary handler answers the next request
            return None
        return CacheableResponse(digest, math.inf, used, file=file, size=stored.length)

    async def _send_blob(
        self, request: web.BaseRequest, content: Content, digest: Digest, fields: dict[str, str]
    ) -> web.StreamResponse:
        if not_modified(request, digest):
            return web.Response(status=304, headers=fields)
        size = content.size
        ranges = () if size is None else wanted_ranges(request, digest, size)
        if size is None or not ranges:
            response = _blob_response(200, fields, size)
            delimit(request, response, size)
            body = content.pieces(0, None)
        elif len(ranges) > 1:
            parts = Parts(ranges, size)
            response = _blob_response(206, fields, parts.length)
            response.headers["Content-Type"] = parts.content_type
            body = parts.pieces(content)
        else:
            (wanted,) = ranges
            response = _blob_response(206, fields, wanted.length)
            response.headers["Content-Range"] = wanted.content_range(size)
            # An open-ended range is sent as the blob arrives; only its end waits for the digest.
            body = content.pieces(wanted.start, None if wanted.open_ended else wanted.stop)
        await stream(request, response, body, self.sender)
        return response

    async def _listing(
        self, request: web.BaseRequest, target: Target, endpoint: TagsEndpoint | ReferrersEndpoint
    ) -> web.StreamResponse:
        query = _kept_query(request)
        if isinstance(endpoint, TagsEndpoint):
            media_type = "application/json"
            answer = await self.listings.tags(target, query)
        else:
            media_type = OCI_INDEX
            answer = await self.listings.referrers(target, endpoint.digest, query)
        exchange = request[EXCHANGE]
        exchange.set_outcome(answer.outcome, private=answer.private)
        exchange.detail = answer.detail
        if answer.opened is not None:
            return await self._large_listing(request, answer, answer.opened())
        headers = _listing_fields(request, answer, media_type)
        return await answer_with(request, headers, answer.listing.body, self.sender)

    async def _large_listing(
        self,
        request: web.BaseRequest,
        answer: ListingAnswer,
        opening: AbstractAsyncContextManager[LargeListing],
    ) -> web.StreamResponse:
        async with opening as large:
            answer = replace(answer, listing=large.listing)
            response = web.StreamResponse(
                headers=_listing_fields(request, answer, "application/json")
            )
            delimit(request, response, large.size)
            await stream(request, response, large.pieces, self.sender)
            return response


def _note_endpoint(exchange: Exchange, endpoint: ContentEndpoint) -> None:
    """Record the image as the client named it, for the log, before its upstream is known."""
    exchange.repository = "/".join(filter(None, (endpoint.prefix, endpoint.name)))
    if isinstance(endpoint, ManifestEndpoint):
        exchange.reference = str(endpoint.reference)
    elif isinstance(endpoint, BlobEndpoint):
        exchange.reference = str(endpoint.digest)


def _is_url(target: str) -> bool:
    return not target.startswith("/") and "://" in target.partition("?")[0]


def raw_path(request: web.BaseRequest) -> str:
    """Return the path as received: after decoding, different paths could look the same."""
    target = request.raw_path.partition("?")[0]
    if not _is_url(target):
        return target
    return "/" + target.partition("://")[2].partition("/")[2]


def _namespace(request: web.BaseRequest) -> str | None:
    """The registry that a client names outside the path; None if it names none.

    The field is for snapshotters that can be configured to send a field, but send no ``ns``.
    """
    return request.rel_url.query.get("ns") or request.headers.get("OCI-Namespace")


def _fields(request: web.BaseRequest, digest: Digest, status: str) -> dict[str, str]:
    fields = {**API_VERSION, **digest_fields(digest), "Cache-Status": status}
    if request[EXCHANGE].private:
        fields |= _FOR_ONE_CLIENT
    return fields | _echo(request)


def _echo(request: web.BaseRequest) -> dict[str, str]:
    """The field that tells a client that its ``ns`` was understood."""
    namespace = _namespace(request)
    return {"OCI-Namespace": namespace} if namespace else {}


def _blob_response(status: int, fields: dict[str, str], length: int | None) -> web.StreamResponse:
    headers = {**fields, "Content-Type": "application/octet-stream", "Accept-Ranges": "bytes"}
    response = web.StreamResponse(status=status, headers=headers)
    response.content_length = length
    return response


def _kept_query(request: web.BaseRequest) -> str:
    """Return the query to send upstream: all but ``ns``; registries page with keys of their own.

    Raises:
        OciError: ``n`` is not a number, or the query is too long.
    """
    query = request.rel_url.query
    count = query.get("n", "0")
    if not (count.isascii() and count.isdecimal()):
        text = "n (entries per page) must be a decimal number"
        raise OciError(ErrorCode.UNSUPPORTED, text, status=400)
    kept = URL.build(query=[pair for pair in query.items() if pair[0] != "ns"]).raw_query_string
    if len(kept) > _MOST_QUERY_BYTES:
        raise OciError(ErrorCode.UNSUPPORTED, "the query exceeds 4096 bytes", status=400)
    return kept


def _listing_fields(
    request: web.BaseRequest, answer: ListingAnswer, media_type: str
) -> dict[str, str]:
    listing = answer.listing
    headers = {
        **API_VERSION,
        "Content-Type": media_type,
        "Cache-Status": cache_status(answer.outcome, detail=answer.detail),
        **_echo(request),
    }
    if answer.private:
        headers |= _FOR_ONE_CLIENT
    if listing.filters_applied:
        headers["OCI-Filters-Applied"] = listing.filters_applied
    if listing.next_query:
        query = listing.next_query
        if "ns" in request.rel_url.query:
            query += f"&{URL.build(query={'ns': request.rel_url.query['ns']}).raw_query_string}"
        headers["Link"] = f'<{raw_path(request)}?{query}>; rel="next"'
    return headers
