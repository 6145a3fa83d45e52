"""Fetches parts of a blob that lie too far ahead of its fill.

A client that mounts an image lazily (eStargz, zstd:chunked) reads the end of a layer first, then
small parts in any order; on a slow line each part would wait for the whole blob.  A part cannot be
verified before the blob is whole.  So it is relayed, and held in memory for a moment for other
clients, but never stored.  A budget per blob limits the cost to upstream.
"""

import logging
from contextlib import AbstractContextManager
from typing import Final

from mirror.lru import Lru
from mirror.oci.digest import Digest
from mirror.pull.body import Source
from mirror.pull.policy import AHEAD_PIECE_BYTES, PASSING_BUFFER_BYTES, ahead_allowance
from mirror.pull.singleflight import SingleFlight
from mirror.upstream.errors import (
    RangeRefusedError,
    RateLimitedError,
    UnavailableError,
    UpstreamError,
)

_log = logging.getLogger(__name__)
_Key = tuple[Digest, int, int, str]

#: The most pieces, and bytes of them, in memory, for all blobs together.
_PIECES: Final = 100_000
_PIECES_BYTES: Final = 32 * 1024 * 1024
#: The assumed cost of a failed fetch: upstream sends as much as fits into buffers on the way.
_FAILURE_BYTES: Final = 256 * 1024
#: Maximum number of blobs whose cost is tracked.
_BLOBS: Final = 4096


class RangeFetches:
    """Pieces of blobs, by digest, start, stop and upstream; concurrent clients share a fetch.

    The pieces are not verified: a piece from one upstream is not served for another upstream.
    """

    def __init__(self, share: float) -> None:
        """Fetch at most this ``share`` of a blob in addition to its fill."""
        self._share = share
        self._spent: Lru[Digest, int] = Lru(_BLOBS)
        self._pieces: Lru[_Key, bytes] = Lru(_PIECES, _PIECES_BYTES)
        self._flights: SingleFlight[_Key, bytes | None] = SingleFlight("part")

    async def lookup(
        self, source: Source, digest: Digest, start: int, stop: int, total: int
    ) -> bytes | None:
        """Return the first bytes of a range of a blob of ``total`` bytes, at most 1 MiB.

        None if they cannot be fetched: then the reader has to wait for the fill.
        """
        key = (digest, start, min(stop, start + AHEAD_PIECE_BYTES), source.registry.name)
        held = self._pieces.get(key)
        if held is not None:
            return held
        piece, _ = await self._flights.join(key, lambda: self._fetch(source, key, total))
        return piece

    def forget(self, digest: Digest, *, spent: bool) -> None:
        """Drop the pieces of a blob whose fill has ended; if ``spent``, reset its cost too."""
        for key in self._pieces:
            if key[0] == digest:
                self._pieces.pop(key)
        if spent:
            self._spent.pop(digest)

    async def close(self) -> None:
        """Cancel all requests."""
        await self._flights.close()

    async def _fetch(self, source: Source, key: _Key, total: int) -> bytes | None:
        digest, start, stop, _ = key
        slot = self._slot(source, key, total)
        if slot is None:
            return None
        try:
            with slot:
                piece = await self._read(source, key, total)
        except UpstreamError as error:
            _log.debug("%s; bytes %d-%d of %s wait for the fill", error, start, stop, digest)
            if isinstance(error, RateLimitedError):
                source.slots.calm(source.registry.name)
            refused = isinstance(error, RangeRefusedError)
            cost = ahead_allowance(total, self._share) if refused else _FAILURE_BYTES
            self._spent.put(digest, (self._spent.get(digest) or 0) + cost)
            return None
        self._pieces.put(key, piece, len(piece))
        return piece

    def _slot(self, source: Source, key: _Key, total: int) -> AbstractContextManager[None] | None:
        """A slot for one more connection, None if the budget is spent or no slot is free."""
        digest, start, stop, _ = key
        cost = (self._spent.get(digest) or 0) + stop - start
        if cost > ahead_allowance(total, self._share):
            return None
        slot = source.slots.try_taken(source.registry.name)
        if slot is not None:
            self._spent.put(digest, cost)
        return slot

    async def _read(self, source: Source, key: _Key, total: int) -> bytes:
        digest, start, stop, _ = key
        opening = source.registry.open_blob(
            source.repository, digest, start, stop, PASSING_BUFFER_BYTES
        )
        piece = bytearray()
        async with opening as stream:
            if stream.offset != start or stream.total != total:
                raise RangeRefusedError(source.registry.name, "does not send the requested range")
            while len(piece) < stop - start and (arrived := await stream.read()):
                piece += arrived
        if len(piece) != stop - start:
            raise UnavailableError(source.registry.name, "sent another part than was requested")
        return bytes(piece)
