"""HTTP to one upstream: time-outs, redirects, limits, broken servers.

Must not know registries.  Bodies are not decoded (a decompressed blob has another digest),
redirects are followed here (aiohttp would requote a signed address and keep custom headers),
and Authorization is sent only to the origin it was made for.
"""

import asyncio
import contextlib
import re
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any, Final, Protocol, Self, TypeVar

import aiohttp
from yarl import URL

from mirror.spans import NOTHING, Span, current, entered
from mirror.trouble import Problem
from mirror.upstream.addresses import as_ascii
from mirror.upstream.breaker import Breaker
from mirror.upstream.errors import (
    BrokenBodyError,
    OversizedAnswerError,
    RedirectError,
    UpstreamError,
    place,
    translated,
)
from mirror.upstream.passthrough import AUTO_HEADERS, PASSING_SECONDS, Outgoing, counted_method
from mirror.upstream.rate_limit import RateLimits, seconds_of, stated_limit
from mirror.upstream.sessions import (
    Sessions,
    TransportSettings,
    is_compressed,
    read_up_to,
    uncompressed,
)

_REDIRECTS: Final = {301, 302, 303, 307, 308}
_MAX_REDIRECTS: Final = 10  # as Go's client
#: Passing errors of load balancers and of Cloudflare (52x, 530); one more attempt often succeeds.
_PASSING: Final = {408, 500, 502, 503, 504, 520, 521, 522, 523, 524, 530}
_AGAIN_SECONDS: Final = 0.2
_MAX_AGAIN_SECONDS: Final = 3.0  # the longest Retry-After that is waited for
#: Answers that may say that there were too many requests, in a few words.
_LIMITING: Final = {403, 429}
_MAX_WORDS_BYTES: Final = 4096
_WORDS_SECONDS: Final = 1.0
#: A limit for less than this is not passed on: ghcr.io's are for some microseconds.
_MOMENT_SECONDS: Final = 0.2
_MAX_BREAKERS: Final = 64
READ_BUFFER_BYTES: Final = 1024 * 1024


R = TypeVar("R")
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
        self.sessions = Sessions(upstream, host, settings)
        self._breakers: dict[URL, Breaker] = {}

    async def __aenter__(self) -> Self:
        self.sessions.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        async with AsyncExitStack() as stack:  # closes the rest even if one close is cancelled
            stack.push_async_callback(self.sessions.close)
            for breaker in self._breakers.values():
                stack.push_async_callback(breaker.close)

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
                await asyncio.sleep(_pause(response))
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
                body = await read_up_to(response.content, limit + 1, count_piece)
        # aiohttp raises RuntimeError for a read on a closed connection.
        except (aiohttp.ClientError, OSError, RuntimeError) as error:
            proxy = self.sessions.lookup_proxy(response.url)
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
            response = await self._answer(
                *("passed", outgoing.method, url, None),
                headers=outgoing.headers,
                skip_auto_headers=AUTO_HEADERS,
                data=outgoing.body,
                timeout=aiohttp.ClientTimeout(
                    sock_connect=self._settings.connect_timeout, sock_read=PASSING_SECONDS
                ),
            )
        except UpstreamError as error:
            breaker.failed(error, url.raw_path)
            raise
        breaker.answered(response.status, url.raw_path)
        return response

    async def _hop(
        self, request: Request, url: URL, limits: RateLimits, *, patient: bool = True
    ) -> aiohttp.ClientResponse:
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
        again = await _limit(response) if response.status in _LIMITING else None
        if again is not None:
            response.release()
            date = response.headers.get("Date", "")
            if patient and 0 < (seconds_of(again, date) or 0) < _MOMENT_SECONDS:
                await asyncio.sleep(_AGAIN_SECONDS)
                return await self._hop(request, url, limits, patient=False)
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
            server = f"{self._upstream}: {place(origin, self.sessions.lookup_proxy(origin))}"
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
        response = await self._answer(
            *(request.kind, request.method, url, self._settings.first_byte_timeout),
            headers={"User-Agent": self._settings.user_agent, **headers},
            read_bufsize=request.buffer_bytes,
        )
        self._note_rate_limit(response)
        return response

    async def _answer(
        self, kind: str, method: str, url: URL, seconds: float | None, **options: Any
    ) -> aiohttp.ClientResponse:
        """Send a request, read the header fields of the answer within ``seconds``, count it."""
        started = time.monotonic()
        code = "error"
        proxy = self.sessions.lookup_proxy(url)
        try:
            async with asyncio.timeout(seconds):
                response = await self.sessions.request(method, url, proxy, **options)
            code = str(response.status)
            return response
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise translated(self._upstream, url, error, proxy) from error
        finally:
            seconds = time.monotonic() - started
            self._observer.upstream_answered(
                self._upstream, kind, counted_method(method), code, seconds
            )

    def _target(self, url: URL, location: str) -> URL:
        try:
            # encoded=True: a signature covers the address byte for byte.
            target = url.join(URL(as_ascii(location), encoded=True))
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


async def whole(ask: Callable[[], Awaitable[R]]) -> R:
    """Return the result of ``ask``, which reads a small body; ask again if the body breaks off."""
    try:
        return await ask()
    except BrokenBodyError:
        return await ask()


async def _limit(response: aiohttp.ClientResponse) -> str | None:
    """Return when to ask again after a limit; see :func:`stated_limit`."""
    again, body = response.headers.get("Retry-After"), b""
    if again is None and (response.content_length or 0) <= _MAX_WORDS_BYTES:
        with contextlib.suppress(aiohttp.ClientError, OSError, RuntimeError):
            async with asyncio.timeout(_WORDS_SECONDS):
                body = await read_up_to(response.content, _MAX_WORDS_BYTES)
    return stated_limit(response.status, again, body)


def _pause(response: aiohttp.ClientResponse) -> float:
    """Return the seconds before another attempt after a passing error."""
    again = seconds_of(response.headers.get("Retry-After", ""), response.headers.get("Date", ""))
    return again if again is not None and again <= _MAX_AGAIN_SECONDS else _AGAIN_SECONDS


def _leading_number(header: str) -> float | None:
    number = header.partition(";")[0].strip()
    return float(number) if _COUNT.fullmatch(number) else None
