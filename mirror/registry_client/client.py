"""A client of a mirror's registry API: manifests, and blobs in pieces.

Knows requests and responses.  Must not know the parts of an image.
"""

import asyncio
import contextlib
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import aiohttp

from mirror import __version__
from mirror.oci.digest import Digest
from mirror.oci.errors import lookup_message
from mirror.oci.manifest import IndexEntry, index_entries
from mirror.oci.media_types import ACCEPT_MANIFESTS
from mirror.oci.reference import Reference, Repository, Tag
from mirror.upstream.sessions import read_up_to


class PullError(Exception):
    """An image, or a part of it, is not available; the message is one line with the reason."""


class ErrorAnswerError(PullError):
    """The mirror answered with an error; ``retry_after`` is its Retry-After in seconds, if any."""

    def __init__(self, message: str, status: int, retry_after: float | None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after


class BrokenOffError(PullError):
    """A body ended early."""


PIECE_BYTES: Final = 1024 * 1024
#: Time limit for a whole manifest or error body.
_BODY_SECONDS: Final = 60.0
_MAX_MANIFEST_BYTES: Final = 4 * 1024 * 1024  # the same limit as for upstreams
_MAX_ERROR_BYTES: Final = 64 * 1024
_FULL_HOUSE: Final = 503
_NOT_FOUND: Final = 404
_MOST_ENCODED: Final = 64  # digits of a digest in a tag
_TRIES: Final = 5
_MAX_PATIENCE_SECONDS: Final = 30.0
_AGENT: Final = f"mirror-warm/{__version__}"


@dataclass(frozen=True, slots=True)
class Place:
    """A repository, and the mirror's name for its registry."""

    upstream: str
    repository: Repository

    def __str__(self) -> str:
        return f"{self.upstream}/{self.repository}"


@dataclass(frozen=True, slots=True)
class PulledManifest:
    """A manifest from the mirror; ``stale``: upstream could not confirm the tag."""

    digest: Digest
    media_type: str
    body: bytes
    stale: bool


class MirrorClient:
    """Sends requests to a mirror: to the first of its processes that answers.

    Each session has the base address of one process.  Every method raises PullError if the content
    is not available, or the mirror does not answer.
    """

    def __init__(
        self,
        sessions: Sequence[aiohttp.ClientSession],
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._sessions = sessions
        self._sleep = sleep

    async def manifest(self, place: Place, reference: Reference) -> PulledManifest:
        """The manifest of a tag or digest, verified."""
        path = f"/v2/{place.repository}/manifests/{reference}"
        async with self._asked(path, place, {"Accept": ACCEPT_MANIFESTS}) as answer:
            body = await _whole(answer)
            headers = answer.headers
        said = headers.get("Docker-Content-Digest", "")
        digest = reference if isinstance(reference, Digest) else _digest(said)
        if Digest.of(body, digest.algorithm) != digest:
            raise PullError(f"{path}: the content from the mirror does not match {digest}")
        return PulledManifest(digest, headers.get("Content-Type", ""), body, _is_stale(headers))

    async def attached(self, place: Place, digest: Digest) -> tuple[IndexEntry, ...]:
        """The manifests that refer to a manifest; by its tag if there is no referrers API.

        Raises:
            NotAManifest: the list is not an index.
        """
        try:
            path = f"/v2/{place.repository}/referrers/{digest}"
            async with self._asked(path, place, {}) as answer:
                return index_entries(await _whole(answer))
        except ErrorAnswerError as error:
            if error.status != _NOT_FOUND:
                raise
        return index_entries((await self.manifest(place, attached_tag(digest))).body)

    async def holds(self, place: Place, digest: Digest) -> bool:
        """Whether the cache has a blob; the blob is not sent.

        On a miss the mirror begins to download it, and continues if a request follows at once.
        """
        headers = {"If-None-Match": f'"{digest}"'}
        async with self._asked(_blob_path(place, digest), place, headers) as answer:
            return _is_hit(answer.headers)

    async def is_stored(self, place: Place, digest: Digest) -> bool:
        """Whether a blob that was just downloaded is in the cache."""
        async with self._asked(_blob_path(place, digest), place, {}, "HEAD") as answer:
            return _is_hit(answer.headers)

    async def blob(self, place: Place, digest: Digest) -> AsyncGenerator[bytes, None]:
        """The bytes of a blob as they arrive; the mirror verifies them before it sends the last.

        Raises:
            BrokenOffError: the body ended early.
        """
        async with self._asked(_blob_path(place, digest), place, {}) as answer:
            try:
                async for piece in answer.content.iter_chunked(PIECE_BYTES):
                    yield piece
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                raise BrokenOffError(f"{digest}: download interrupted") from error

    @asynccontextmanager
    async def _asked(
        self, path: str, place: Place, headers: Mapping[str, str], method: str = "GET"
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send a request; retry on 503."""
        for last in (*[False] * (_TRIES - 1), True):
            async with await self._answer(path, place, headers, method) as answer:
                if answer.status < 400:
                    yield answer
                    return
                refusal = await _refusal(answer)
            if last or refusal.status != _FULL_HOUSE:
                raise refusal
            await self._sleep(min(refusal.retry_after or 1.0, _MAX_PATIENCE_SECONDS))

    async def _answer(
        self, path: str, place: Place, headers: Mapping[str, str], method: str
    ) -> aiohttp.ClientResponse:
        trouble: Exception | None = None
        for session in self._sessions:
            try:
                return await session.request(
                    method,
                    path,
                    params={"ns": place.upstream},
                    headers={"User-Agent": _AGENT, **headers},
                    allow_redirects=False,
                )
            except aiohttp.ClientConnectionError as error:  # that process has ended
                trouble = error
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                raise PullError(f"the mirror does not answer: {_reason(error)}") from error
        assert trouble is not None, "a mirror has at least one process"
        raise PullError(f"the mirror does not answer: {_reason(trouble)}") from trouble


def attached_tag(digest: Digest, kind: str = "") -> Tag:
    """The tag for what is attached to a manifest (OCI distribution spec, referrers tag schema).

    ``kind``: a suffix of cosign, such as ``.sig``.
    """
    _, _, encoded = str(digest).partition(":")
    return Tag(f"{digest.algorithm}-{encoded[:_MOST_ENCODED]}{kind}")


def _blob_path(place: Place, digest: Digest) -> str:
    return f"/v2/{place.repository}/blobs/{digest}"


def _is_hit(headers: Mapping[str, str]) -> bool:
    return headers.get("Cache-Status", "").startswith("mirror; hit")


def _is_stale(headers: Mapping[str, str]) -> bool:
    status = headers.get("Cache-Status", "")
    # A tag that a rule holds has a second detail.
    return status.startswith("mirror; fwd=stale") and "detail=revalidated" not in status


def _digest(text: str) -> Digest:
    try:
        return Digest.parse(text)
    except ValueError as error:
        raise PullError(f"no valid Docker-Content-Digest from the mirror: {error}") from error


async def _whole(answer: aiohttp.ClientResponse) -> bytes:
    try:
        async with asyncio.timeout(_BODY_SECONDS):
            body = await read_up_to(answer.content, _MAX_MANIFEST_BYTES + 1)
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        raise PullError(f"the mirror does not answer: {_reason(error)}") from error
    if len(body) > _MAX_MANIFEST_BYTES:
        raise PullError(f"the mirror sent a manifest over {_MAX_MANIFEST_BYTES} bytes")
    return body


async def _refusal(answer: aiohttp.ClientResponse) -> ErrorAnswerError:
    message = None
    with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):
        async with asyncio.timeout(_BODY_SECONDS):
            message = lookup_message(await read_up_to(answer.content, _MAX_ERROR_BYTES))
    seconds = answer.headers.get("Retry-After", "")
    return ErrorAnswerError(
        message or f"the mirror answers {answer.status}",
        answer.status,
        float(seconds) if seconds.isdecimal() else None,
    )


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "timeout"
    return str(error) or "the connection failed"
