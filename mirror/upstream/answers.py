"""What a registry answers, as values, and the bytes of a blob as they arrive."""

from dataclasses import dataclass

import aiohttp

from mirror.oci.digest import Digest
from mirror.upstream.errors import OversizedError
from mirror.upstream.transport import Observer, translated


@dataclass(frozen=True, slots=True)
class ManifestHead:
    """What HEAD tells of a manifest; None where upstream left it out.  ``size`` in bytes."""

    digest: Digest | None
    media_type: str
    size: int | None


@dataclass(frozen=True, slots=True)
class ManifestBody:
    """A manifest as it came, not yet verified; ``digest`` is what upstream says it is."""

    body: bytes
    media_type: str
    digest: Digest | None


@dataclass(frozen=True, slots=True)
class Listing:
    """A page of a listing, and the query of the next page (empty: this is the last)."""

    body: bytes
    media_type: str
    next_query: str
    filters_applied: str


class BlobStream:
    """The bytes of a blob from ``offset`` on, as they arrive; ``total`` is the blob's size."""

    def __init__(
        self,
        upstream: str,
        response: aiohttp.ClientResponse,
        span: tuple[int, int | None],
        observer: Observer,
        max_bytes: int,
    ) -> None:
        """Read a body that stands for ``span`` (offset and size) of a blob.

        Raises:
            OversizedError: the blob has more than ``max_bytes``.
        """
        self._upstream = upstream
        self._response = response
        self._observer = observer
        self._max_bytes = max_bytes
        self.offset, self.total = span
        self._position = self.offset
        self._check_size(self.total or 0)

    async def read(self) -> bytes:
        """The next bytes, ``b""`` at the end.

        Raises:
            UnavailableError, TimedOutError: the connection broke or stalled.
            OversizedError: it does not end.
        """
        try:
            piece = await self._response.content.readany()
        # RuntimeError: aiohttp's word for a body that is read on a connection that is gone.
        except (aiohttp.ClientError, OSError, RuntimeError) as error:
            raise translated(self._upstream, self._response.url, error) from error
        self._observer.upstream_bytes(self._upstream, "blob", len(piece))
        self._position += len(piece)
        self._check_size(self._position)
        return piece

    def _check_size(self, size: int) -> None:
        if size > self._max_bytes:
            text = f"sends a blob of more than {self._max_bytes} bytes ([fetch] max_blob_size)"
            raise OversizedError(self._upstream, text)
