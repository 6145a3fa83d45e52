"""Redirects: clients of some networks get large public blobs from the object store itself.

These clients verify what they get, as Docker, containerd and Podman do.  A client that asks for a
blob again gets its bytes from the mirror, since its download from the object store may have failed.
"""

import logging
import time
from collections.abc import Callable, Sequence
from typing import Final

from mirror.cluster.objects import Bucket
from mirror.cluster.tier import TierError
from mirror.cluster.uploads import path_of
from mirror.http.forwarded import Network, is_within
from mirror.lru import Lru
from mirror.oci.digest import Digest
from mirror.pull.singleflight import SingleFlight
from mirror.store.local.layout import BLOBS, ObjectKey
from mirror.trouble import Problem, Trouble

_log = logging.getLogger(__name__)

_LEAST_BYTES: Final = 1024 * 1024
#: How long an address is valid, and how long its client gets no other one for the same blob.
_VALID_SECONDS: Final = 300.0
#: How long the size of an object is believed: another mirror may store or evict the object.
_KNOWN_SECONDS: Final = 10.0
#: How long credentials that cannot sign are not used again.
_UNSIGNED_SECONDS: Final = 60.0
_MOST_KNOWN: Final = 10_000
_REMEDY: Final = "let its credentials sign addresses, or remove [cluster] redirect_networks"


class Redirects:
    """Gives out addresses of blobs in the object store."""

    def __init__(self, bucket: Bucket, clock: Callable[[], float] = time.monotonic) -> None:
        self._bucket = bucket
        self._clock = clock
        self._sizes: Lru[Digest, tuple[int, float]] = Lru(_MOST_KNOWN)  # 0: not there
        self._asked: SingleFlight[Digest, int] = SingleFlight("size in the object store")
        self._given: Lru[tuple[str, Digest], float] = Lru(_MOST_KNOWN)
        self._used: Lru[ObjectKey, float] = Lru(_MOST_KNOWN)  # Unix seconds
        self.trouble = Trouble()
        self._unsigned_until = 0.0

    async def address(self, networks: Sequence[Network], client: str, digest: Digest) -> str | None:
        """Return where a client in ``networks`` gets a blob, None if it gets the bytes here."""
        if not (self._bucket.up and is_within(client, networks)):
            return None
        now, given = self._clock(), self._given.get((client, digest))
        if now < self._unsigned_until:
            return None
        if given is not None and now - given < _VALID_SECONDS:
            self._sizes.pop(digest)  # it may be gone
            return None
        try:
            if await self._size(digest) <= _LEAST_BYTES:
                return None
        except TierError as error:
            _log.debug("%s", error)
            return None
        address = await self._signed(ObjectKey(BLOBS, digest))
        if address is not None:
            self._given.put((client, digest), now)
        return address

    def used_after(self, after: float) -> list[ObjectKey]:
        """Return what clients were sent to after a time (Unix seconds)."""
        return [key for key in self._used if (self._used.get(key) or 0.0) > after]

    async def close(self) -> None:
        await self._asked.close()

    async def _size(self, digest: Digest) -> int:
        """Return the size of a blob in the object store, 0 if it is not there.

        Raises:
            TierError: the object store does not answer.
        """
        size, since = self._sizes.get(digest) or (0, -_KNOWN_SECONDS)
        if self._clock() - since < _KNOWN_SECONDS:
            return size
        return (await self._asked.join(digest, lambda: self._lookup(digest)))[0]

    async def _lookup(self, digest: Digest) -> int:
        found = await self._bucket.lookup(path_of(ObjectKey(BLOBS, digest)), self._bucket.patience)
        size = 0 if found is None else found.size
        self._sizes.put(digest, (size, self._clock()))
        return size

    async def _signed(self, key: ObjectKey) -> str | None:
        try:
            address = await self._bucket.address(path_of(key), _VALID_SECONDS)
        except TierError as error:
            self._unsigned_until = self._clock() + _UNSIGNED_SECONDS
            if self.trouble.met(Problem("clients are not redirected", str(error), _REMEDY)):
                _log.warning("clients are not redirected: %s; %s", error, _REMEDY)
            return None
        if (seconds := self.trouble.over()) is not None:
            _log.warning("clients are redirected again, after %.0f s", seconds)
        self._used.put(key, time.time())
        return address
