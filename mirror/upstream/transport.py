"""HTTP to one upstream: sessions, time-outs, redirects.

Knows nothing of registries.  Bodies pass undecoded (a decompressed blob has another digest),
redirects are followed by hand (aiohttp would requote a signed address and keep custom headers),
and Authorization never goes to another origin than the one it was made for.
"""

import asyncio
import ssl
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Protocol, Self

import aiohttp
from yarl import URL

from mirror.upstream.errors import TimedOutError, UnavailableError, UpstreamError

_REDIRECTS: Final = {301, 302, 303, 307, 308}
_MAX_REDIRECTS: Final = 5
_READ_BUFFER_BYTES: Final = 1024 * 1024
_MAX_HEADER_BYTES: Final = 64 * 1024  # tokens and signed addresses outgrow aiohttp's 8 KiB


class Observer(Protocol):
    """Who wants to know of every request that went out."""

    def upstream_answered(
        self, upstream: str, kind: str, method: str, code: str, seconds: float
    ) -> None:
        """``code`` is the status, or ``error`` when there was no answer."""

    def upstream_rate_limit(self, upstream: str, limit: float, remaining: float) -> None:
        """Upstream told how many pulls it allows and how many are left."""

    def upstream_bytes(self, upstream: str, kind: str, count: int) -> None:
        """Body bytes arrived."""


@dataclass(frozen=True, slots=True)
class TransportSettings:
    """How to reach upstream; times in seconds."""

    connect_timeout: float = 10.0
    first_byte_timeout: float = 30.0
    idle_timeout: float = 60.0
    proxy: str = ""
    ca_files: tuple[str, ...] = ()
    user_agent: str = "mirror"


@dataclass(frozen=True, slots=True)
class Request:
    """One request; ``kind`` is the metric label, ``authorization`` for the first origin only."""

    method: str
    url: URL
    kind: str
    accept: str = "*/*"
    authorization: str | None = None
    range_start: int = 0

    def headers(self, *, same_origin: bool) -> dict[str, str]:
        """The header fields for one hop."""
        headers = {"Accept": self.accept, "Accept-Encoding": "identity"}
        if self.range_start:
            headers["Range"] = f"bytes={self.range_start}-"
        if self.authorization and same_origin:
            headers["Authorization"] = self.authorization
        return headers


class Transport:
    """A pool of connections to one upstream and to where it redirects."""

    def __init__(self, upstream: str, settings: TransportSettings, observer: Observer) -> None:
        self._upstream = upstream
        self._settings = settings
        self._observer = observer
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        settings = self._settings
        self._session = aiohttp.ClientSession(
            auto_decompress=False,
            trust_env=True,
            cookie_jar=aiohttp.DummyCookieJar(),
            connector=aiohttp.TCPConnector(limit=0, ssl=_tls(settings.ca_files)),
            headers={"User-Agent": settings.user_agent},
            max_line_size=_MAX_HEADER_BYTES,
            max_field_size=_MAX_HEADER_BYTES,
            read_bufsize=_READ_BUFFER_BYTES,
            timeout=aiohttp.ClientTimeout(
                total=None,
                sock_connect=settings.connect_timeout,
                sock_read=settings.idle_timeout,
            ),
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def send(self, request: Request) -> aiohttp.ClientResponse:
        """Send a request, follow where it leads, return the last answer with its body unread.

        Raises:
            UnavailableError, TimedOutError: there was no usable answer.
        """
        url = request.url
        for _ in range(_MAX_REDIRECTS + 1):
            same_origin = url.origin() == request.url.origin()
            response = await self._hop(request, url, request.headers(same_origin=same_origin))
            if response.status not in _REDIRECTS or "Location" not in response.headers:
                return response
            location = response.headers["Location"]
            response.release()
            url = self._target(url, location)
        raise UnavailableError(self._upstream, f"more than {_MAX_REDIRECTS} redirects")

    async def ping(self, url: URL) -> None:
        """Ask a registry for ``/v2/``; any answer will do.

        Raises:
            UnavailableError, TimedOutError: there was none.
        """
        response = await self._hop(Request("GET", url / "v2/", "ping"), url / "v2/", {})
        response.close()

    async def _hop(
        self, request: Request, url: URL, headers: dict[str, str]
    ) -> aiohttp.ClientResponse:
        assert self._session is not None, "a transport is entered before it is used"
        started = time.monotonic()
        code = "error"
        try:
            async with asyncio.timeout(self._settings.first_byte_timeout):
                response = await self._session.request(
                    request.method,
                    url,
                    headers=headers,
                    allow_redirects=False,
                    proxy=self._settings.proxy or None,
                )
            code = str(response.status)
            self._note_rate_limit(response)
            return response
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise translated(self._upstream, url, error) from error
        finally:
            seconds = time.monotonic() - started
            self._observer.upstream_answered(
                self._upstream, request.kind, request.method, code, seconds
            )

    def _target(self, url: URL, location: str) -> URL:
        try:
            # encoded=True: a signature covers the address byte for byte.
            target = url.join(URL(location, encoded=True))
        except ValueError as error:
            raise UnavailableError(self._upstream, "redirects to no address") from error
        if target.scheme not in {"http", "https"} or not target.host:
            raise UnavailableError(self._upstream, "redirects to no http address")
        if url.scheme == "https" and target.scheme == "http":
            raise UnavailableError(self._upstream, f"redirects from https to {target.origin()}")
        return target

    def _note_rate_limit(self, response: aiohttp.ClientResponse) -> None:
        limit = _leading_number(response.headers.get("ratelimit-limit", ""))
        remaining = _leading_number(response.headers.get("ratelimit-remaining", ""))
        if limit is not None and remaining is not None:
            self._observer.upstream_rate_limit(self._upstream, limit, remaining)


def translated(upstream: str, url: URL, error: Exception) -> UpstreamError:
    """An exception of aiohttp's as one of ours: the only seam between the two.

    The message names the origin and never the path or query, which may be signed.
    """
    origin = url.origin() if url.host else url
    if isinstance(error, TimeoutError):
        return TimedOutError(upstream, f"{origin} did not answer in time")
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return UnavailableError(upstream, f"the name of {origin} does not resolve")
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return UnavailableError(
            upstream, f"the certificate of {origin} is not trusted (ca_file adds a CA)"
        )
    if isinstance(error, aiohttp.ClientConnectorError):
        return UnavailableError(upstream, f"cannot connect to {origin}")
    if isinstance(error, aiohttp.ClientPayloadError):
        return UnavailableError(upstream, f"{origin} broke off in the middle of a body")
    return UnavailableError(upstream, f"talking to {origin} failed ({type(error).__name__})")


def _tls(ca_files: tuple[str, ...]) -> ssl.SSLContext:
    context = ssl.create_default_context()
    for file in ca_files:
        context.load_verify_locations(cafile=file)
    return context


def _leading_number(header: str) -> float | None:
    number = header.partition(";")[0].strip()
    return float(number) if number.isascii() and number.isdigit() else None
