"""The other replicas: their addresses, and blobs from them over the registry API.

Requests between replicas carry a signature under the common secret, so that they need no password,
and so that only a replica can make another one download for it.  What a replica sends is verified
like anything from upstream.
"""

import asyncio
import contextlib
import hashlib
import json
import logging
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final
from urllib.parse import urlsplit

import aiohttp
from yarl import URL

from mirror.cluster.secret import Secret
from mirror.cluster.tier import Observer, TierError
from mirror.http.admission import CONTENT_DIGEST, REPLICA_FIELD, content_digest
from mirror.oci.byterange import parse_content_range
from mirror.oci.digest import Digest
from mirror.oci.errors import lookup_message
from mirror.spans import current, entered
from mirror.upstream.sessions import read_up_to
from mirror.upstream.transport import READ_BUFFER_BYTES

_log = logging.getLogger(__name__)

_DNS: Final = "dns:"
_RESOLVE_SECONDS: Final = 5.0
_CONNECT_SECONDS: Final = 0.5
#: After this long without a byte, the replica is asked whether it lives: its upstream may be slow.
_QUIET_SECONDS: Final = 2.0
_PROBE_SECONDS: Final = 1.0
#: A replica that lives, but sends less than _LEAST_BYTES in this time, is replaced: it may lie, or
#: its download hang.  Clients give up after 30 s.
_MOST_QUIET_SECONDS: Final = 20.0
_LEAST_BYTES: Final = 64 * 1024
#: How long a replica that did not answer is not asked for another blob.
_DOWN_SECONDS: Final = 5.0
_MOST_ANSWER_BYTES: Final = 1024 * 1024
_MOST_REASON: Final = 200  # characters
_MISDIRECTED: Final = 421  # it does not lead (RFC 9110, 15.5.20)
TIER: Final = "replicas"  # the label of metrics


class PeerError(TierError):
    """A replica does not answer, or its answer broke off."""


class NotServedError(PeerError):
    """A replica lives, but refuses the blob; ``leading``: it leads the download, which failed."""

    def __init__(self, message: str, *, leading: bool) -> None:
        super().__init__(message)
        self.leading = leading


class PeerStream:
    """A blob as a replica sends it; see :class:`mirror.upstream.responses.BlobStream`."""

    def __init__(
        self,
        response: aiohttp.ClientResponse,
        span: tuple[int, int | None],
        peers: "Peers",
        address: str,
        observer: Observer,
    ) -> None:
        self._response = response
        self._observer = observer
        self._peers = peers
        self._address = address
        self.offset, self.total = span
        self.ranged = False
        self._waited = 0.0  # seconds, since the last _LEAST_BYTES had arrived
        self._arrived = 0  # bytes in that time

    async def read(self) -> bytes:
        """Return the next bytes, ``b""`` at the end.

        Raises:
            PeerError: the connection broke, or the replica does not live, or sends next to nothing.
        """
        clock = asyncio.get_running_loop().time
        while True:
            started = clock()
            try:
                async with asyncio.timeout(_QUIET_SECONDS):
                    piece = await self._response.content.readany()
            except TimeoutError:
                await self._peers.probe(self._address)
                piece = None
            except (aiohttp.ClientError, OSError, RuntimeError) as error:
                raise PeerError(f"{self._response.url.origin()} broke off") from error
            self._waited += clock() - started
            self._arrived += len(piece or b"")
            if self._arrived >= _LEAST_BYTES:
                self._waited, self._arrived = 0.0, 0
            elif piece != b"" and self._waited > _MOST_QUIET_SECONDS:
                raise self._peers.dead(self._address)
            if piece is not None:
                self._observer.tier_bytes(TIER, "in", len(piece))
                return piece


class Peers:
    """All replicas, and a client for them."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        secret: Secret,
        own: str,
        named: Sequence[str],
        observer: Observer,
    ) -> None:
        """``own``: this replica's address; ``named``: URLs of replicas, and ``dns:host:port``."""
        self._session = session
        self._secret = secret
        self._observer = observer
        self.own = own
        self._found: dict[str, list[str]] = {}
        self._named = asyncio.Event()
        self.use(named)
        self._down_until: dict[str, float] = {}

    def use(self, named: Sequence[str]) -> None:
        """Know these replicas, named as in the constructor; names are looked up soon."""
        self._fixed = [each.rstrip("/") for each in named if not each.startswith(_DNS)]
        self._names = [each.removeprefix(_DNS) for each in named if each.startswith(_DNS)]
        self._found = {name: self._found.get(name, []) for name in self._names}
        self._named.set()

    def in_order(self, digest: Digest) -> list[str]:
        """Return all replicas, this one too, in the order in which they are to lead a download.

        All replicas find the same order (rendezvous hashing, Thaler and Ravishankar 1998).
        """

        def weight(address: str) -> bytes:
            return hashlib.sha256(f"{address} {digest}".encode()).digest()

        return sorted({self.own, *self.others()}, key=weight)

    def may_answer(self, address: str) -> bool:
        """Whether a replica has not failed to answer just now."""
        now = asyncio.get_running_loop().time()
        return self._down_until.get(address, now) <= now

    @asynccontextmanager
    async def open(
        self, address: str, upstream: str, repository: str, digest: Digest, start: int
    ) -> AsyncIterator[PeerStream]:
        """Open a blob of a replica from byte ``start`` on.

        Raises:
            NotServedError: the replica answers without the blob.
            PeerError: it does not answer.
        """
        url = _blob(address, upstream, repository, digest)
        span = f"bytes={start}-"
        with entered(current().child("replica", outgoing=True)) as span_of_trace:
            span_of_trace.note({"server.address": url.host or ""})
            headers = {
                **span_of_trace.headers(),
                "Range": span,
                "Accept-Encoding": "identity",
                REPLICA_FIELD: self._secret.field("GET", url.raw_path_qs, span),
            }
            clock = asyncio.get_running_loop().time
            started, result = clock(), "error"
            try:
                asked = self._session.get(url, headers=headers, allow_redirects=False)
                response = await self._watched(address, asked)
                result = "hit" if response.status in {200, 206} else "miss"
            finally:
                self._observer.tier_answered(TIER, "get", result, clock() - started)
        try:
            found = _span(response, start)
            yield PeerStream(response, found, self, address, self._observer)
        finally:
            response.release() if response.content.at_eof() else response.close()

    def others(self) -> list[str]:
        """Return the addresses of the other replicas, in order."""
        found = [address for each in self._found.values() for address in each]
        return sorted({*self._fixed, *found} - {self.own})

    async def ask(
        self, address: str, path: str, patience: float, body: bytes | None = None
    ) -> Mapping[str, Any]:
        """Ask for a JSON object, by POST if there is a body; ``patience``: seconds.

        Raises:
            PeerError: the replica does not answer in time, or refuses.
        """
        url, method, fields = URL(address + path), "GET", {}
        if body is not None:
            method, fields = "POST", {CONTENT_DIGEST: content_digest(body)}
        covered = fields.get(CONTENT_DIGEST, "")
        fields[REPLICA_FIELD] = self._secret.field(method, url.raw_path_qs, covered)
        options: Any = {"data": body, "headers": fields, "allow_redirects": False}
        try:
            async with (
                asyncio.timeout(patience),
                self._session.request(method, url, **options) as response,
            ):
                answer = await read_up_to(response.content, _MOST_ANSWER_BYTES)
        except (aiohttp.ClientError, OSError, RuntimeError) as error:
            raise PeerError(f"{address} does not answer") from error
        if response.status != 200:
            reason = ascii(lookup_message(answer) or "")[:_MOST_REASON]
            raise PeerError(f"{address} answers {response.status}: {reason}")
        try:
            return dict(json.loads(answer))
        except (ValueError, TypeError, RecursionError) as error:
            raise PeerError(f"{address} answers no JSON object") from error

    async def leader(
        self, addresses: Sequence[str], upstream: str, repository: str, digest: Digest
    ) -> str | None:
        """Return the first of some replicas to say that it has a blob, or downloads it."""
        asked = [
            asyncio.create_task(self._leads(each, _blob(each, upstream, repository, digest)))
            for each in addresses
        ]
        try:
            for answered in asyncio.as_completed(asked):
                if leader := await answered:
                    return leader
            return None
        finally:
            for task in asked:
                task.cancel()

    async def _leads(self, address: str, url: URL) -> str | None:
        fields = {REPLICA_FIELD: self._secret.field("HEAD", url.raw_path_qs, "")}
        timeout = aiohttp.ClientTimeout(total=_QUIET_SECONDS)
        clock = asyncio.get_running_loop().time
        started = clock()
        try:
            async with self._session.head(url, headers=fields, timeout=timeout) as response:
                result = "hit" if response.status == 200 else "miss"
        except (aiohttp.ClientError, OSError):
            result = "error"
            self.dead(address)
        self._observer.tier_answered(TIER, "head", result, clock() - started)
        return address if result == "hit" else None

    async def _watched(
        self, address: str, asked: Awaitable[aiohttp.ClientResponse]
    ) -> aiohttp.ClientResponse:
        """Wait for an answer as long as the replica lives."""
        task = asyncio.ensure_future(asked)
        try:
            async with asyncio.timeout(_MOST_QUIET_SECONDS):
                while not (await asyncio.wait({task}, timeout=_QUIET_SECONDS))[0]:
                    await self.probe(address)
            return task.result()
        except (aiohttp.ClientError, OSError) as error:  # a TimeoutError is an OSError
            raise self.dead(address) from error
        finally:
            task.cancel()

    async def probe(self, address: str) -> None:
        """Return if a replica lives; PeerError otherwise."""
        timeout = aiohttp.ClientTimeout(total=_PROBE_SECONDS)
        try:
            url = f"{address}/healthz"
            async with self._session.get(url, timeout=timeout, allow_redirects=False):
                return
        except (aiohttp.ClientError, OSError) as error:
            raise self.dead(address) from error

    def dead(self, address: str) -> PeerError:
        """Ask a replica for no other blob for a while; return the error that says so."""
        self._down_until[address] = asyncio.get_running_loop().time() + _DOWN_SECONDS
        return PeerError(f"the replica {address} does not answer")

    # Names that lead to several replicas.

    async def resolve(self) -> None:
        """Look up all names once; a name that has no answer keeps its former addresses."""
        self._named.clear()
        for name in self._names:
            with contextlib.suppress(OSError):
                async with asyncio.timeout(_RESOLVE_SECONDS):
                    found = await self._addresses(name)
                    if name in self._found:  # else a reload has removed it meanwhile
                        self._found[name] = found

    async def _addresses(self, name: str) -> list[str]:
        host, _, port = name.rpartition(":")
        loop, scheme = asyncio.get_running_loop(), urlsplit(self.own).scheme
        found = await loop.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
        hosts = {str(each[4][0]) for each in found}
        return [f"{scheme}://{f'[{each}]' if ':' in each else each}:{port}" for each in hosts]

    async def keep_resolving(self) -> None:
        """Look up all names regularly, and new ones at once; run it in the background."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_RESOLVE_SECONDS):
                    await self._named.wait()
            await self.resolve()


def _blob(address: str, upstream: str, repository: str, digest: Digest) -> URL:
    return URL(f"{address}/v2/{repository}/blobs/{digest}").with_query(ns=upstream)


def _span(response: aiohttp.ClientResponse, start: int) -> tuple[int, int | None]:
    """Return the offset of the body in the blob and the size of the blob, None if unknown."""
    where = str(response.url.origin())
    if response.status == 200:
        return 0, response.content_length
    if response.status != 206:
        leading = response.status != _MISDIRECTED
        raise NotServedError(f"{where} answered {response.status}", leading=leading)
    try:
        first, _, total = parse_content_range(response.headers.get("Content-Range", ""))
    except ValueError as error:
        raise PeerError(f"{where} answered a bad Content-Range") from error
    if first != start:
        raise PeerError(f"{where} answered from byte {first}, asked for {start}")
    return first, total


@asynccontextmanager
async def opened_peers(
    secret: Secret, own: str, named: Sequence[str], trust: ssl.SSLContext, observer: Observer
) -> AsyncIterator[Peers]:
    """Open a client for the replicas; ``trust``: the CAs of those with TLS."""
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS)
    async with aiohttp.ClientSession(
        auto_decompress=False,
        trust_env=False,
        cookie_jar=aiohttp.DummyCookieJar(),
        connector=aiohttp.TCPConnector(limit=0, ssl=trust),
        timeout=timeout,
        read_bufsize=READ_BUFFER_BYTES,
    ) as session:
        peers = Peers(session, secret, own, named, observer)
        await peers.resolve()
        resolving = asyncio.create_task(peers.keep_resolving(), name="replicas")
        try:
            yield peers
        finally:
            resolving.cancel()
            await asyncio.gather(resolving, return_exceptions=True)
