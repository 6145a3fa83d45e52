"""What a registry answers, as values, and the bytes of a blob as they arrive."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final

import aiohttp

from mirror.oci.digest import Digest
from mirror.shares import Hold
from mirror.upstream.errors import OversizedError
from mirror.upstream.passthrough import end_to_end
from mirror.upstream.proxies import Proxy
from mirror.upstream.translation import translated
from mirror.upstream.transport import Observer

#: Little enough that turns come often, enough that taking them costs nothing (10 us each).
_GRANT_BYTES: Final = 128 * 1024
#: What a busy event loop made late may be made up for; more than this would be a burst.
_CATCH_UP_SECONDS: Final = 0.05

Turn = Callable[[int], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class ManifestHead:
    """What HEAD tells of a manifest; None where upstream left it out.  ``size`` in bytes."""

    digest: Digest | None
    media_type: str
    size: int | None


@dataclass(frozen=True, slots=True)
class ManifestBody:
    """A manifest as it came, not yet verified; ``digest`` is what upstream says it is.

    ``hold`` is its place in memory.
    """

    body: bytes
    media_type: str
    digest: Digest | None
    hold: Hold | None = None


@dataclass(frozen=True, slots=True)
class Listing:
    """A page of a listing, and the query of the next page (empty: this is the last).

    ``hold`` is its place in memory.
    """

    body: bytes
    next_query: str
    filters_applied: str
    hold: Hold | None = None


class Pace:
    """So many bytes a second for all downloads of one upstream, in turns.

    Each blob has one turn, over however many connections it comes: whoever has more connections
    gets no more of the line (start-time fair queueing, Goyal et al. 1996: a blob that comes back
    a moment late for its turn has lost nothing).
    """

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._had: dict[str, int] = {}  # bytes each blob was given, counted as if all began at once
        self._level = 0  # what the blob served last had had before
        self._waiting: dict[str, deque[tuple[asyncio.Future[None], int]]] = {}
        self._due = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def turn(self, blob: str) -> Turn:
        """What a connection of ``blob`` awaits for the bytes it has read."""

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
        for _ in range(len(self._waiting)):  # then whoever was served gets in line again
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
        if not granted.done():  # else its download was broken off
            granted.set_result(None)
            self._level = self._had[blob]
            self._had[blob] += count
            self._due += count / self._rate


class BlobStream:
    """The bytes of a blob from ``offset`` on, as they arrive; ``total`` is the blob's size.

    ``ranged``: upstream says that it can be asked for parts.
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
    ) -> None:
        """Read a body that stands for ``span`` (offset and size) of a blob, as ``turn`` allows.

        It comes through ``proxy``, if that is one.

        Raises:
            OversizedError: the blob has more than ``max_bytes``.
        """
        self._upstream = upstream
        self._response = response
        self._observer = observer
        self._max_bytes = max_bytes
        self._turn = turn
        self._proxy = proxy
        self.offset, self.total = span
        units = response.headers.get("Accept-Ranges", "").lower()
        self.ranged = response.status == 206 or units == "bytes"
        self._position = self.offset
        self._check_size(self.total or 0)

    async def read(self) -> bytes:
        """The next bytes, ``b""`` at the end.

        Raises:
            UnavailableError, TimedOutError: the connection broke or stalled.
            OversizedError: it does not end.
        """
        try:
            piece = await self._arrived()
        # RuntimeError: aiohttp's word for a body that is read on a connection that is gone.
        except (aiohttp.ClientError, OSError, RuntimeError) as error:
            raise translated(self._upstream, self._response.url, error, self._proxy) from error
        self._observer.upstream_bytes(self._upstream, "blob", len(piece))
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
            text = f"sends a blob of more than {self._max_bytes} bytes ([fetch] max_blob_size)"
            raise OversizedError(self._upstream, text)


class PassedAnswer:
    """What a registry answered to a client's own request."""

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
        """What was read to its end is kept alive, anything else is closed."""
        response = self._response
        response.release() if response.content.at_eof() else response.close()
