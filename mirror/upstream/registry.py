"""Client of one upstream registry: the pull part of the OCI distribution spec."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final

import aiohttp
from yarl import URL

from mirror.oci.digest import Digest
from mirror.shares import SMALL_BYTES, Hold, Rooms
from mirror.trouble import Problem
from mirror.upstream.auth import Authenticator
from mirror.upstream.errors import (
    DeniedError,
    NonsenseError,
    NotFoundError,
    OversizedAnswerError,
    RangeRefusedError,
    RedirectError,
    RejectedError,
    UpstreamError,
)
from mirror.upstream.listings import (
    CONTENT,
    PAGES,
    TagStream,
    is_broken_json,
    is_listing,
    lacks_referrers,
    listing_page,
    own_name,
)
from mirror.upstream.passthrough import Outgoing, correct_addresses
from mirror.upstream.quirks import quirks_of
from mirror.upstream.responses import (
    REJECTIONS,
    BlobStream,
    Listing,
    ManifestBody,
    ManifestHead,
    Pace,
    PassedAnswer,
    error_of,
    length_of,
    readable_field,
    span_of,
    stated_digest,
)
from mirror.upstream.transport import Observer, Request, Transport, whole

_MAX_MANIFEST_BYTES: Final = 4 * 1024 * 1024  # the spec asks registries to accept at least this
_MAX_LISTING_BYTES: Final = 16 * 1024 * 1024
_NO_REFERRERS: Final = "has no referrers API"
_MAX_ERROR_BYTES: Final = 64 * 1024
#: The memory reserved first for an answer of unknown size.
_FIRST_BYTES: Final = 1024 * 1024


class Registry:
    """One upstream registry at one address.

    Every request raises UpstreamError if upstream does not serve what it asks for.
    """

    def __init__(
        self,
        name: str,
        url: URL,
        transport: Transport,
        authenticator: Authenticator,
        observer: Observer,
        rooms: Rooms,
        max_blob_bytes: int,
        pace: Pace | None = None,
        *,
        prefix: str = "",
        replaceable: bool = False,
    ) -> None:
        """Ask the registry whose API is below ``url``, at ``/v2/``.

        All names of repositories begin with ``prefix`` there: "", or a path with a slash at its
        end.  ``replaceable``: a web page is an error, because another address can answer instead.
        """
        self.name = name
        self._url = url
        self._transport = transport
        self._authenticator = authenticator
        self._observer = observer
        self._rooms = rooms
        self.max_blob_bytes = max_blob_bytes
        self._pace = pace
        self._prefix = prefix
        self._replaceable = replaceable

    @property
    def address(self) -> str:
        """The origin of the registry's URL."""
        return str(self._url.origin())

    def problems(self) -> list[Problem]:
        """Return the troubles that last, of its servers and of this client there."""
        return [*self._transport.problems(), *self._authenticator.problems()]

    def with_credentials(self, authenticator: Authenticator) -> "Registry":
        """Return the same registry for another client."""
        return Registry(
            *(self.name, self._url, self._transport, authenticator, self._observer),
            *(self._rooms, self.max_blob_bytes, self._pace),
            prefix=self._prefix,
        )

    async def renew(self, repository: str) -> None:
        """Drop the token for a repository: the next request makes upstream check the login."""
        await self._authenticator.renew(self._own_name(repository))

    async def greet(self) -> None:
        """Ask for ``/v2/``."""
        async with self._ask("GET", "", "", "ping"):
            return

    async def confirm(
        self, kind: str, repository: str, reference: str, accept: str = "*/*"
    ) -> None:
        """Check that upstream serves a ``manifest`` or a ``blob`` to this client."""
        path = f"/{kind}s/{reference}"
        try:
            async with self._ask("HEAD", repository, path, kind, accept=accept):
                return
        except UpstreamError as error:
            if not error.by_status:
                raise
        await self._peek(repository, path, kind, accept)  # the status is enough

    async def _peek(self, repository: str, path: str, kind: str, accept: str = "*/*") -> int | None:
        """Ask for the first byte by GET, or for all if upstream refuses that; return the size.

        The body is closed unread.
        """
        for stop in (1, None):
            try:
                asking = self._ask("GET", repository, path, kind, accept=accept, span=(0, stop))
                async with asking as answer:
                    return span_of(self.name, answer, 0)[1]
            except (RangeRefusedError, NonsenseError, RejectedError):
                if stop is None:
                    raise
        raise AssertionError("the loop returns or raises")

    async def head_manifest(self, repository: str, reference: str, accept: str) -> ManifestHead:
        """Ask for the fields of a manifest by HEAD; Docker Hub does not count this as a pull."""
        path = f"/manifests/{reference}"
        async with self._ask("HEAD", repository, path, "manifest", accept=accept) as response:
            media_type = readable_field(response.headers, "Content-Type")
            return ManifestHead(stated_digest(response), media_type, length_of(response))

    async def get_manifest(self, repository: str, reference: str, accept: str) -> ManifestBody:
        """Fetch a manifest of at most 4 MiB."""
        path = f"/manifests/{reference}"

        async def get() -> ManifestBody:
            async with self._ask("GET", repository, path, "manifest", accept=accept) as response:
                body, hold = await self._read(response, "manifest", _MAX_MANIFEST_BYTES)
                media_type = response.headers.get("Content-Type", "")
                return ManifestBody(body, media_type, stated_digest(response), hold)

        return await whole(get)

    async def head_blob(self, repository: str, digest: Digest) -> int | None:
        """Return the size of a blob in bytes, None if upstream does not tell it.

        If HEAD is refused or does not tell the size, ask by GET for the first byte.
        """
        path = f"/blobs/{digest}"
        if quirks_of(self.name, self._url.host).blob_head:
            try:
                async with self._ask("HEAD", repository, path, "blob") as answer:
                    size = length_of(answer)
                    if size or (size == 0 and _is_empty(digest)):
                        return size
            except UpstreamError as error:
                if not error.by_status:
                    raise
        size = await self._peek(repository, path, "blob")
        return size if size or _is_empty(digest) else None

    @asynccontextmanager
    async def open_blob(
        self, repository: str, digest: Digest, start: int, stop: int | None, buffer_bytes: int
    ) -> AsyncIterator[BlobStream]:
        """Open a blob from byte ``start`` up to ``stop`` (None: the end).

        Upstream may ignore the range and send the whole blob from byte 0.

        If the reader is slow, up to twice ``buffer_bytes`` are held in memory.
        """
        path, span = f"/blobs/{digest}", (start, stop)
        asking = self._ask("GET", repository, path, "blob", span=span, buffer_bytes=buffer_bytes)
        async with asking as response:
            sent = span_of(self.name, response, start)
            if sent[1] == 0 and not _is_empty(digest):
                raise NonsenseError(self.name, f"answered without content for {digest}")
            turn = None if self._pace is None else self._pace.turn(str(digest))
            proxy = self._transport.sessions.lookup_proxy(response.url)
            yield BlobStream(
                self.name, response, sent, self._observer, self.max_blob_bytes, turn, proxy
            )

    async def tags(self, repository: str, query: str) -> Listing:
        """Fetch a page of the list of tags."""
        return await whole(lambda: self._listing(repository, "/tags/list", "tags", query))

    @asynccontextmanager
    async def open_tags(
        self, repository: str, query: str, buffer_bytes: int
    ) -> AsyncIterator[tuple[Listing, TagStream]]:
        """Open a page of the list of tags that is too large to hold."""
        asking = self._ask(
            *("GET", repository, "/tags/list", "tags"), query=query, buffer_bytes=buffer_bytes
        )
        async with asking as response:
            if response.content_type in PAGES:
                raise NonsenseError(self.name, "answered a web page for a list of tags")
            span, proxy = (
                (0, response.content_length),
                self._transport.sessions.lookup_proxy(response.url),
            )
            limits = (span, self._observer, self.max_blob_bytes)
            stream = BlobStream(self.name, response, *limits, proxy=proxy, kind="tags")
            yield listing_page(response, large=True), TagStream(stream, self._prefix)

    async def referrers(self, repository: str, digest: Digest, query: str) -> Listing:
        """Fetch a page of the referrers of a manifest.

        Raises:
            UpstreamError: upstream does not serve the list; NotFoundError if it lacks the API.
        """
        path = f"/referrers/{digest}"
        try:
            return await whole(lambda: self._listing(repository, path, "referrers", query))
        except RedirectError as error:  # such as to a page for people that needs cookies
            raise NotFoundError(self.name, f"{_NO_REFERRERS} ({error.message})") from error

    async def pass_on(self, outgoing: Outgoing) -> PassedAnswer:
        """Send a client's own request; the caller closes the answer.

        Raises:
            DeniedError: names of repositories are different at upstream, so that the paths and the
                token scopes of the client are wrong there.
            UpstreamError: upstream does not answer.
        """
        if self._prefix:
            place = f"{self._url}/v2/{self._prefix}"
            text = f"only pulls are passed on to {place}: send this request to that registry itself"
            raise DeniedError(self.name, text)
        url = outgoing.url(self._url)
        response = await self._transport.pass_on(outgoing, url)
        answer = PassedAnswer(self.name, response, self._transport.sessions.lookup_proxy(url))
        correct_addresses(answer.headers, self._url, outgoing.headers.get("Host", ""))
        return answer

    async def _listing(self, repository: str, path: str, kind: str, query: str) -> Listing:
        async with self._ask("GET", repository, path, kind, query=query) as response:
            try:
                body, hold = await self._read(response, kind, _MAX_LISTING_BYTES)
            except OversizedAnswerError:
                if kind != "tags":
                    raise
                return listing_page(response, large=True)
            members = ("manifests",) if kind == "referrers" else ("tags", "name")
            if not is_listing(body, members):
                if kind == "referrers" and not is_broken_json(body):
                    raise NotFoundError(self.name, f"{_NO_REFERRERS} (it answered other content)")
                raise NonsenseError(self.name, "answered a listing that is not JSON of a listing")
            if self._prefix:
                body = own_name(self._prefix).sub(rb"\1", body, count=1)
            return listing_page(response, body, hold)

    @asynccontextmanager
    async def _ask(
        self,
        method: str,
        repository: str,
        path: str,
        kind: str,
        *,
        accept: str = "*/*",
        query: str = "",
        span: tuple[int, int | None] = (0, None),
        buffer_bytes: int | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send a request for a ``path`` of a repository.

        For a small answer, wait for this client's turn.  A large one has its own limits:
        ``buffer_bytes`` is its buffer.
        """
        name = self._own_name(repository)
        url = URL(f"{self._url}/v2/{name}{path}" + (f"?{query}" if query else ""), encoded=True)
        start, stop = span
        large = buffer_bytes is not None
        request = Request(
            *(method, url, kind, accept, None, start), buffer_bytes or SMALL_BYTES, stop
        )
        turn = None if large else await self._rooms.questions.hold(self.name)
        try:
            response = await self._authenticator.send(request, name)
            try:
                if kind == "referrers" and lacks_referrers(response, self._url):
                    raise NotFoundError(self.name, f"{_NO_REFERRERS} (its {response.status})")
                await self._check(response, kind, name)
                yield response
            finally:
                # A connection is reused only if its body was read to the end.
                response.release() if response.content.at_eof() else response.close()
        finally:
            if turn is not None:
                turn.release()

    def _own_name(self, repository: str) -> str:
        """The registry's own name of a repository; "" stays ""."""
        return self._prefix + repository if repository else ""

    async def _check(self, response: aiohttp.ClientResponse, kind: str, repository: str) -> None:
        status, origin = response.status, response.url.origin()
        if status in CONTENT or status == 206:
            if self._replaceable and response.content_type in PAGES:
                raise NonsenseError(self.name, f"{origin} answered a web page for {repository}")
            return
        own, body = origin == self._url.origin(), b""
        if own and status in REJECTIONS:
            with suppress(UpstreamError):
                body = await self._transport.read(response, kind, _MAX_ERROR_BYTES)
        proxy = self._transport.sessions.lookup_proxy(response.url)
        raise error_of(self.name, response, repository, proxy, body, own=own)

    async def _read(
        self, response: aiohttp.ClientResponse, kind: str, limit: int
    ) -> tuple[bytes, Hold | None]:
        """Read a body of at most ``limit`` bytes; a body over SMALL_BYTES also has a hold."""
        size = length_of(response)
        hold: Hold | None = None
        if size is None or SMALL_BYTES < size <= limit:
            hold = await self._rooms.answers.hold(self.name, size or _FIRST_BYTES)
        received = 0

        def arrived(count: int) -> None:
            nonlocal received
            received += count
            while hold is not None and received > hold.amount:
                hold.grow(hold.amount)

        try:
            body = await self._transport.read(response, kind, limit, arrived)
            if hold is not None and len(body) > SMALL_BYTES:
                hold.shrink(len(body))
                kept, hold = hold, None
                return body, kept
            return body, None
        finally:
            if hold is not None:  # an error keeps its frames alive, and the hold with them
                hold.release()


def _is_empty(digest: Digest) -> bool:
    """Whether this is the digest of no bytes."""
    return Digest.of(b"", digest.algorithm) == digest
