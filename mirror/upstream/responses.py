"""The answers of a registry, and the stream of the bytes of a blob."""

import asyncio
import json
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final

import aiohttp

from mirror.oci.byterange import parse_content_range
from mirror.oci.digest import Digest, InvalidDigest
from mirror.shares import Hold
from mirror.upstream.auth import challenge_fields
from mirror.upstream.errors import (
    DeniedError,
    NonsenseError,
    NotFoundError,
    OversizedError,
    RangeRefusedError,
    RejectedError,
    UnauthorizedError,
    UnavailableError,
    UpstreamError,
    place,
    translated,
)
from mirror.upstream.passthrough import end_to_end
from mirror.upstream.proxies import Proxy
from mirror.upstream.sessions import is_compressed
from mirror.upstream.transport import Observer

#: Small enough for frequent turns, large enough that their cost (10 us each) does not matter.
_GRANT_BYTES: Final = 128 * 1024
#: How much delay of a busy event loop is caught up; more would cause a burst.
_CATCH_UP_SECONDS: Final = 0.05

_MAX_WORD_CHARACTERS: Final = 500
#: Statuses that reach the client with upstream's own words.
REJECTIONS: Final = {400, 402, 410, 413, 451}

Turn = Callable[[int], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class ManifestHead:
    """The answer to HEAD of a manifest; None for a missing field.

    ``size`` is in bytes; 0 is unknown too: some registries answer HEAD with an empty body's fields.
    """

    digest: Digest | None
    media_type: str
    size: int | None


@dataclass(frozen=True, slots=True)
class ManifestBody:
    """A manifest as received, not verified; ``digest`` is the digest that upstream states.

    ``hold`` is its share of the memory for answers.
    """

    body: bytes
    media_type: str
    digest: Digest | None
    hold: Hold | None = None


@dataclass(frozen=True, slots=True)
class Listing:
    """A page of a listing, and the query of the next page (empty on the last page).

    ``hold`` is its share of the memory for answers.  ``large``: the body is empty here, since it is
    too large to hold; see ``Registry.open_tags``.
    """

    body: bytes
    next_query: str
    filters_applied: str
    large: bool = False
    hold: Hold | None = None


def readable_field(headers: Mapping[str, str], name: str) -> str:
    """Return a field if it is safe to send to clients, else an empty text."""
    value = headers.get(name, "")
    return value if value.isascii() and value.isprintable() else ""


def parse_error(body: bytes) -> tuple[str, str]:
    """Return code and message of the first error in an error body of the spec, empty if unknown."""
    try:
        first = json.loads(body)["errors"][0]
        code, message = first.get("code"), first.get("message")
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        return "", ""
    return _word(code), _word(message)


def _word(value: object) -> str:
    if not isinstance(value, str) or not value.isprintable():
        return ""
    return value[:_MAX_WORD_CHARACTERS]


def length_of(response: aiohttp.ClientResponse) -> int | None:
    """Return the size of the content in bytes; that of a compressed body is another one."""
    return None if is_compressed(response) else response.content_length


def stated_digest(response: aiohttp.ClientResponse) -> Digest | None:
    """Return the digest of a manifest that upstream states, None without a valid one."""
    try:
        return Digest.parse(response.headers.get("Docker-Content-Digest", ""))
    except InvalidDigest:
        return None


def span_of(upstream: str, response: aiohttp.ClientResponse, start: int) -> tuple[int, int | None]:
    """Return the position of a body in its blob, and the size of the blob (None: unknown).

    Raises:
        NonsenseError: it is a part that does not begin at ``start``.
    """
    if response.status != 206:
        return 0, length_of(response)
    try:
        first, _, total = parse_content_range(response.headers.get("Content-Range", ""))
    except ValueError as error:
        raise NonsenseError(upstream, "answered a range with a bad Content-Range") from error
    if first != start:
        raise NonsenseError(upstream, f"answered from byte {first}, asked for {start}")
    return first, total


def error_of(
    upstream: str,
    response: aiohttp.ClientResponse,
    repository: str,
    proxy: Proxy | None,
    body: bytes,
    *,
    own: bool,
) -> UpstreamError:
    """Return the error for an answer without content; ``own``: it is of the registry itself.

    ``body`` is that of an answer with one of the ``REJECTIONS``, as far as it was read.
    """
    status, origin = response.status, response.url.origin()
    if status == 404:
        return NotFoundError(upstream, f"has no such thing in {repository}")
    if status == 416:
        return RangeRefusedError(upstream, "refuses to continue where the last answer ended")
    fields = challenge_fields(response)
    if status == 401 and (own or fields):  # storage refuses without a challenge
        text = "asks for other credentials (its 401)"
        if not own:
            what = f"{repository or 'the registry'} is behind a redirect to {origin}"
            text = f"{what}, where the mirror has no login (its 401)"
        elif repository:
            text = f"{repository} is private or does not exist (its upstream says 401)"
        return UnauthorizedError(upstream, text, fields if own else ())
    if status == 403 and own:
        return DeniedError(upstream, f"denies access to {repository or 'this client'}")
    if status in REJECTIONS and own:
        code, words = parse_error(body)
        text = f"answered {status} for {repository}" + (f": {words}" if words else "")
        return RejectedError(upstream, text, status, code)
    unavailable = UnavailableError(
        upstream, f"{place(response.url, proxy)} answered {status} for {repository}"
    )
    unavailable.by_status = True
    return unavailable


class Pace:
    """Limits all downloads of one upstream to ``rate`` bytes per second, shared between blobs.

    Turns are per blob, not per connection: more connections do not give a blob a larger share
    (start-time fair queueing, Goyal et al. 1996: a blob that is a little late for its turn loses
    nothing).
    """

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._had: dict[str, int] = {}  # bytes granted per blob, as if all had started together
        self._level = 0  # the value in _had of the blob served last, before its grant
        self._waiting: dict[str, deque[tuple[asyncio.Future[None], int]]] = {}
        self._due = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def turn(self, blob: str) -> Turn:
        """Return the function that a connection of ``blob`` awaits after each read."""

        async def take(count: int) -> None:
            granted = asyncio.get_running_loop().create_future()
            if blob not in self._waiting:
                self._waiting[blob] = deque()
                self._had[blob] = max(self._had.get(blob, 0), self._level)
            self._waiting[blob].append((granted, count))
            if self._timer is None:
                self._serve()
            await granted

        return take

    def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        self._timer = None
        self._due = max(self._due, now - _CATCH_UP_SECONDS)
        for _ in range(len(self._waiting)):  # then served blobs queue again
            if self._waiting and self._due <= now:
                self._grant()
        if self._waiting:
            self._timer = loop.call_later(self._due - now, self._serve)
        else:
            self._had = {blob: had for blob, had in self._had.items() if had > self._level}

    def _grant(self) -> None:
        blob = min(self._waiting, key=self._had.__getitem__)
        line = self._waiting[blob]
        granted, count = line.popleft()
        if not line:
            del self._waiting[blob]
        if not granted.done():  # else the download was cancelled
            granted.set_result(None)
            self._level = self._had[blob]
            self._had[blob] += count
            self._due += count / self._rate


class BlobStream:
    """The stream of a blob from ``offset`` on; ``total`` is the size of the blob in bytes.

    ``ranged``: upstream states that it supports ranges.
    """

    def __init__(
        self,
        upstream: str,
        response: aiohttp.ClientResponse,
        span: tuple[int, int | None],
        observer: Observer,
        max_bytes: int,
        turn: Turn | None = None,
        proxy: Proxy | None = None,
        kind: str = "blob",
    ) -> None:
        """Stream the body of ``response``.

        Args:
            span: the offset of the body in the blob and the size of the blob (None: unknown).
            turn: limits the rate; None: no limit.
            proxy: the proxy of the connection, for error messages.
            kind: the kind of the content, for the observer.

        Raises:
            OversizedError: the blob has more than ``max_bytes``.
        """
        self._upstream = upstream
        self._response = response
        self._observer = observer
        self._max_bytes = max_bytes
        self._turn = turn
        self._proxy = proxy
        self._kind = kind
        self.offset, self.total = span
        units = response.headers.get("Accept-Ranges", "").lower()
        self.ranged = response.status == 206 or units == "bytes"
        self._position = self.offset
        self._check_size(self.total or 0)

    async def read(self) -> bytes:
        """The next bytes, ``b""`` at the end.

        Raises:
            UnavailableError, TimedOutError: the connection broke or stalled.
            OversizedError: the body exceeds the limit.
        """
        try:
            piece = await self._arrived()
        # aiohttp raises RuntimeError for a read on a closed connection.
        except (aiohttp.ClientError, OSError, RuntimeError) as error:
            raise translated(self._upstream, self._response.url, error, self._proxy) from error
        self._observer.upstream_bytes(self._upstream, self._kind, len(piece))
        self._position += len(piece)
        self._check_size(self._position)
        if self._turn is not None and piece:
            await self._turn(len(piece))
        return piece

    async def _arrived(self) -> bytes:
        content = self._response.content
        return await (content.readany() if self._turn is None else content.read(_GRANT_BYTES))

    def _check_size(self, size: int) -> None:
        if size > self._max_bytes:
            text = (
                f"sends a {self._kind} of more than {self._max_bytes} bytes ([fetch] max_blob_size)"
            )
            raise OversizedError(self._upstream, text)


class PassedAnswer:
    """The answer of a registry to a client's own request."""

    def __init__(
        self, upstream: str, response: aiohttp.ClientResponse, proxy: Proxy | None
    ) -> None:
        self._upstream = upstream
        self._proxy = proxy
        self._response = response
        self.status = response.status
        self.reason = response.reason or ""
        self.headers = end_to_end(response.headers)

    async def read(self) -> bytes:
        """The next bytes of the body, ``b""`` at the end.

        Raises:
            UnavailableError, TimedOutError: the connection broke or stalled.
        """
        try:
            return await self._response.content.readany()
        except (aiohttp.ClientError, OSError, RuntimeError) as error:
            raise translated(self._upstream, self._response.url, error, self._proxy) from error

    def close(self) -> None:
        """Release the connection; it is reused only if the body was read to the end."""
        response = self._response
        response.release() if response.content.at_eof() else response.close()
