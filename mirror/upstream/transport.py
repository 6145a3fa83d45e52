"""HTTP to one upstream: sessions, time-outs, redirects.

Must not know registries.  Bodies are not decoded (a decompressed blob has another digest),
redirects are followed here (aiohttp would requote a signed address and keep custom headers),
and Authorization is sent only to the origin it was made for.
"""

import asyncio
import re
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Protocol, Self

import aiohttp
from aiohttp.abc import AbstractResolver
from yarl import URL

from mirror.spans import NOTHING, Span, current, entered
from mirror.trouble import Problem
from mirror.upstream.addresses import GuardedResolver, trusting
from mirror.upstream.body import is_compressed, read_up_to, uncompressed
from mirror.upstream.breaker import Breaker
from mirror.upstream.errors import (
    OversizedAnswerError,
    RedirectError,
    UnreachableError,
    UpstreamError,
    place,
    translated,
)
from mirror.upstream.framing import forgiving
from mirror.upstream.passthrough import AUTO_HEADERS, PASSING_SECONDS, Outgoing, counted_method
from mirror.upstream.proxies import NO_PROXIES, Proxies, Proxy
from mirror.upstream.rate_limit import RateLimits

_REDIRECTS: Final = {301, 302, 303, 307, 308}
_MAX_REDIRECTS: Final = 5
_PROXY_LOGIN: Final = 407
#: A load balancer answers so while one of its servers restarts; one more attempt often succeeds.
_PASSING: Final = {502, 503, 504}
_AGAIN_SECONDS: Final = 0.2
_MAX_BREAKERS: Final = 64
READ_BUFFER_BYTES: Final = 1024 * 1024
_MAX_HEADER_BYTES: Final = 64 * 1024  # tokens and signed addresses exceed aiohttp's 8 KiB
_MAX_FIELDS: Final = 1024


_COUNT: Final = re.compile(r"[0-9]{1,15}", re.ASCII)


class Observer(Protocol):
    """Observes the requests to upstreams."""

    def upstream_answered(
        self, upstream: str, kind: str, method: str, code: str, seconds: float
    ) -> None:
        """``code`` is the status, or ``error`` without an answer."""

    def upstream_rate_limit(self, upstream: str, limit: float, remaining: float) -> None:
        """Upstream stated how many pulls it allows and how many are left."""

    def upstream_limited(self, upstream: str, seconds: float) -> None:
        """The mirror sends no further requests of some kind for so many seconds, after a 429."""

    def upstream_login(self, upstream: str, refused: bool) -> None:
        """Upstream refuses the mirror's login, or does not any more."""

    def upstream_bytes(self, upstream: str, kind: str, count: int) -> None:
        """``count`` bytes of a body arrived."""


@dataclass(frozen=True, slots=True)
class TransportSettings:
    """How to reach upstream; times are in seconds.

    ``private_redirects``: a public registry may redirect to private addresses.
    ``http_redirects``: a server with https may redirect to one without.
    """

    connect_timeout: float = 10.0
    first_byte_timeout: float = 30.0
    idle_timeout: float = 60.0
    proxies: Proxies = NO_PROXIES
    private_redirects: bool = False
    http_redirects: bool = False
    ca_files: tuple[str, ...] = ()
    user_agent: str = "mirror"


@dataclass(frozen=True, slots=True)
class Request:
    """One request; ``kind`` is the metric label, ``authorization`` is for the first origin only.

    It asks for the bytes from ``range_start`` up to ``range_stop`` (exclusive; None: the end).
    """

    method: str
    url: URL
    kind: str
    accept: str = "*/*"
    authorization: str | None = None
    range_start: int = 0
    buffer_bytes: int = READ_BUFFER_BYTES
    range_stop: int | None = None

    @property
    def is_worth_another_attempt(self) -> bool:
        """Whether a passing error is tried again here.

        HEAD is followed by GET anyway, and a further connection of a download may be one too many.
        """
        return self.method == "GET" and self.range_stop is None

    def headers(self, *, same_origin: bool) -> dict[str, str]:
        """Return the header fields for one hop."""
        headers = {"Accept": self.accept, "Accept-Encoding": "identity"}
        if self.range_start or self.range_stop is not None:
            last = "" if self.range_stop is None else self.range_stop - 1
            headers["Range"] = f"bytes={self.range_start}-{last}"
        if self.authorization and same_origin:
            headers["Authorization"] = self.authorization
        return headers


class Transport:
    """A connection pool for one upstream and the servers it redirects to."""

    def __init__(
        self, upstream: str, host: str, settings: TransportSettings, observer: Observer
    ) -> None:
        """``host`` is the host of the registry."""
        self._upstream = upstream
        self._settings = settings
        self._observer = observer
        self._resolver = None if settings.private_redirects else GuardedResolver(host)
        self._breakers: dict[URL, Breaker] = {}
        self._direct: aiohttp.ClientSession | None = None
        self._proxied: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._direct = self._opened(self._resolver)
        # A separate session: it resolves only the names of proxies, which may be private.
        self._proxied = self._opened(None)
        return self

    def _opened(self, resolver: AbstractResolver | None) -> aiohttp.ClientSession:
        settings = self._settings
        return aiohttp.ClientSession(
            auto_decompress=False,
            trust_env=False,  # aiohttp would send credentials from ~/.netrc
            cookie_jar=aiohttp.DummyCookieJar(),
            connector=forgiving(
                aiohttp.TCPConnector(limit=0, ssl=trusting(settings.ca_files), resolver=resolver)
            ),
            max_headers=_MAX_FIELDS,
            max_line_size=_MAX_HEADER_BYTES,
            max_field_size=_MAX_HEADER_BYTES,
            timeout=aiohttp.ClientTimeout(
                total=None,
                sock_connect=settings.connect_timeout,
                sock_read=settings.idle_timeout,
            ),
        )

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        async with AsyncExitStack() as stack:  # closes the rest even if one close is cancelled
            for session in (self._direct, self._proxied):
                if session is not None:
                    stack.push_async_callback(session.close)
            for breaker in self._breakers.values():
                stack.push_async_callback(breaker.close)

    def lookup_proxy(self, url: URL) -> Proxy | None:
        """Return the proxy for an address, None if the address is reached directly."""
        return self._settings.proxies.lookup(url.scheme, url.raw_host or "", url.port or 0)

    async def _request(
        self, method: str, url: URL, proxy: Proxy | None, **options: Any
    ) -> aiohttp.ClientResponse:
        session = self._direct if proxy is None else self._proxied
        assert session is not None, "a transport is entered before it is used"
        if self._resolver is not None and url.host is not None:
            self._resolver.check(url.host)
        response = await session.request(
            method,
            url,
            allow_redirects=False,
            proxy=None if proxy is None else proxy.url,
            **options,
        )
        if response.status == _PROXY_LOGIN and proxy is not None:
            response.close()
            raise UnreachableError(self._upstream, f"the proxy {proxy} wants user and password")
        return response

    async def send(self, request: Request, limits: RateLimits) -> aiohttp.ClientResponse:
        """Send a request, follow its redirects, return the last answer with its body unread.

        Raises:
            RateLimitedError: a server answered 429, or did so before for such a request.
            UnavailableError, TimedOutError: upstream did not answer, or a redirect is refused.
        """
        url = request.url
        for _ in range(_MAX_REDIRECTS + 1):
            response = await self._hop(request, url, limits)
            if response.status in _PASSING and request.is_worth_another_attempt:
                response.release()
                await asyncio.sleep(_AGAIN_SECONDS)
                response = await self._hop(request, url, limits)
            if response.status not in _REDIRECTS or "Location" not in response.headers:
                return response
            location = response.headers["Location"]
            response.release()
            url = self._target(url, location)
        raise RedirectError(self._upstream, f"more than {_MAX_REDIRECTS} redirects")

    async def read(
        self,
        response: aiohttp.ClientResponse,
        kind: str,
        limit: int,
        arrived: Callable[[int], None] = lambda _: None,
    ) -> bytes:
        """Read the whole body of a small answer: at most ``limit`` bytes.

        ``arrived`` is called with the size of every piece in bytes before the next read.

        The whole body has to arrive within ``idle_timeout``; a time-out counts for the breaker.

        Raises:
            OversizedAnswerError: the body is larger than ``limit``.
            UnavailableError, TimedOutError: the body broke off or did not arrive in time.
        """

        def count_piece(count: int) -> None:
            self._observer.upstream_bytes(self._upstream, kind, count)
            arrived(count)

        text = f"answered a {kind} over {limit} bytes"
        if (response.content_length or 0) > limit:
            raise OversizedAnswerError(self._upstream, text)
        try:
            async with asyncio.timeout(self._settings.idle_timeout):
                body = await read_up_to(
                    response.content,
                    limit + 1,
                    count_piece,
                )
        # aiohttp raises RuntimeError for a read on a closed connection.
        except (aiohttp.ClientError, OSError, RuntimeError) as error:
            proxy = self.lookup_proxy(response.url)
            failure = translated(self._upstream, response.url, error, proxy)
            self._breaker(response.url.origin()).failed(failure, response.url.raw_path)
            raise failure from error
        if is_compressed(response):
            packed = len(body)
            body = uncompressed(body, limit + 1)
            arrived(max(0, len(body) - packed))
        if len(body) > limit:
            raise OversizedAnswerError(self._upstream, text)
        return body

    async def pass_on(self, outgoing: Outgoing, url: URL) -> aiohttp.ClientResponse:
        """Send a client's own request, return the answer with its body unread.

        Redirects are not followed: they are for the client.

        Raises:
            UnavailableError, TimedOutError: upstream did not answer.
        """
        breaker = self._breaker(url.origin())
        await breaker.check()
        try:
            response = await self._passed(outgoing, url)
        except UpstreamError as error:
            breaker.failed(error, url.raw_path)
            raise
        breaker.answered(response.status, url.raw_path)
        return response

    async def _passed(self, outgoing: Outgoing, url: URL) -> aiohttp.ClientResponse:
        started = time.monotonic()
        code = "error"
        proxy = self.lookup_proxy(url)
        try:
            response = await self._request(
                outgoing.method,
                url,
                proxy,
                headers=outgoing.headers,
                skip_auto_headers=AUTO_HEADERS,
                data=outgoing.body,
                timeout=aiohttp.ClientTimeout(
                    sock_connect=self._settings.connect_timeout, sock_read=PASSING_SECONDS
                ),
            )
            code = str(response.status)
            return response
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise translated(self._upstream, url, error, proxy) from error
        finally:
            seconds = time.monotonic() - started
            self._observer.upstream_answered(
                self._upstream, "passed", counted_method(outgoing.method), code, seconds
            )

    async def _hop(self, request: Request, url: URL, limits: RateLimits) -> aiohttp.ClientResponse:
        """Send one request, unless its server is down or limits such requests."""
        origin = url.origin()
        kind = (str(origin), request.kind, request.method)
        if learned := await limits.learn(*kind):
            self._observer.upstream_limited(self._upstream, learned)
        limits.check(*kind)
        breaker = self._breaker(origin)
        await breaker.check()
        headers = request.headers(same_origin=origin == request.url.origin())
        try:
            response = await self._exchange(request, url, headers)
        except UpstreamError as error:
            breaker.failed(error, url.raw_path)
            raise
        breaker.answered(response.status, url.raw_path)
        if response.status == 429:
            response.release()
            fields = response.headers
            again, date = fields.get("Retry-After", ""), fields.get("Date", "")
            limited = await limits.close(*kind, again, date)
            if limits.own:
                self._observer.upstream_limited(self._upstream, limited.retry_after)
            raise limited
        limits.passed(*kind)
        return response

    def problems(self) -> list[Problem]:
        """Return the servers that do not answer."""
        return [each.problem for each in self._breakers.values() if each.problem is not None]

    def _breaker(self, origin: URL) -> Breaker:
        """Return the breaker of one server: a registry can be up while its storage is down."""
        breaker = self._breakers.pop(origin, None)
        if breaker is None:
            server = f"{self._upstream}: {place(origin, self.lookup_proxy(origin))}"
            breaker = Breaker(server, lambda: self._ping(origin))
        self._breakers[origin] = breaker  # the last one used is the last one dropped
        if len(self._breakers) > _MAX_BREAKERS:  # storage with changing host names
            self._breakers.pop(next(iter(self._breakers))).stop()
        return breaker

    async def _ping(self, origin: URL) -> None:
        """Ask a server for ``/v2/``; any answer means that it is up."""
        url = origin / "v2/"
        response = await self._exchange(Request("GET", url, "ping"), url, {})
        response.close()

    async def _exchange(
        self, request: Request, url: URL, headers: dict[str, str]
    ) -> aiohttp.ClientResponse:
        """Send a request, read the answer's header fields; record a span if tracing is on."""
        part = current()
        if part is NOTHING or request.kind == "ping":  # a ping belongs to no client request
            return await self._exchanged(request, url, headers)
        own = url.origin() == request.url.origin()
        with entered(part.child(request.method, outgoing=True)) as span:
            self._describe(span, request, url if own else url.origin())
            told = span.headers() if own else {}  # trace headers are not for redirect targets
            response = await self._exchanged(request, url, {**headers, **told})
            span.note({"http.response.status_code": response.status})
            if response.status >= 400 and response.status != 401:  # 401 is a normal challenge
                span.fail(str(response.status))
            return response

    def _describe(self, span: Span, request: Request, url: URL) -> None:
        address = url.with_query(None).with_user(None)  # both may contain secrets
        span.note(
            {
                "http.request.method": request.method,
                "url.full": str(address),
                "server.address": url.host or "",
                "server.port": url.port or 0,
                "mirror.upstream": self._upstream,
                "mirror.kind": request.kind,
            }
        )

    async def _exchanged(
        self, request: Request, url: URL, headers: dict[str, str]
    ) -> aiohttp.ClientResponse:
        started = time.monotonic()
        code = "error"
        proxy = self.lookup_proxy(url)
        try:
            async with asyncio.timeout(self._settings.first_byte_timeout):
                response = await self._request(
                    request.method,
                    url,
                    proxy,
                    headers={"User-Agent": self._settings.user_agent, **headers},
                    read_bufsize=request.buffer_bytes,
                )
            code = str(response.status)
            self._note_rate_limit(response)
            return response
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise translated(self._upstream, url, error, proxy) from error
        finally:
            seconds = time.monotonic() - started
            self._observer.upstream_answered(
                self._upstream, request.kind, request.method, code, seconds
            )

    def _target(self, url: URL, location: str) -> URL:
        try:
            # encoded=True: a signature covers the address byte for byte.
            target = url.join(URL(location, encoded=True))
            host = target.host
        except ValueError as error:
            raise RedirectError(self._upstream, "redirects to an invalid address") from error
        if target.scheme not in {"http", "https"} or not host:
            raise RedirectError(self._upstream, "redirects to an address without http or https")
        downgraded = url.scheme == "https" and target.scheme == "http"
        if downgraded and not self._settings.http_redirects:
            raise RedirectError(
                self._upstream,
                f"redirects from https to {target.origin()} (http_redirects allows it)",
            )
        return target

    def _note_rate_limit(self, response: aiohttp.ClientResponse) -> None:
        limit = _leading_number(response.headers.get("ratelimit-limit", ""))
        remaining = _leading_number(response.headers.get("ratelimit-remaining", ""))
        if limit is not None and remaining is not None:
            self._observer.upstream_rate_limit(self._upstream, limit, remaining)


def _leading_number(header: str) -> float | None:
    number = header.partition(";")[0].strip()
    return float(number) if _COUNT.fullmatch(number) else None
