"""Leases: which replica downloads a blob for all of them.

A lease is one key in the shared state with the address of its holder.  It ends by itself when the
holder dies, and another replica takes it over at once when its connection to the holder breaks.
Two holders do no harm, since both write the same bytes: there is no fencing.
"""

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

from mirror.cluster.secret import Secret
from mirror.cluster.state import State, StateDownError
from mirror.oci.digest import Digest

_LEASE_SECONDS: Final = 10.0
_RENEW_SECONDS: Final = 3.0
#: How long a lease names its holder after the download: until then the blob may not be in the
#: object store yet, and the holder serves it from its own cache.
_STORED_SECONDS: Final = 60.0

#: Take a lease that is free, is ours, or is that of ARGV[2]; return the value of its holder.
_TAKE: Final = """
local held = redis.call('GETRANGE', KEYS[1], 0, 4095)
if held ~= '' and held ~= ARGV[1] and held ~= ARGV[2] then return held end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[3])
return ARGV[1]
"""
#: End a lease of ours after ARGV[2] milliseconds.
_RELEASE: Final = """
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
"""


class Leases:
    """The leases of the replica at the address ``own``."""

    def __init__(
        self,
        state: State,
        own: str,
        secret: Secret,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._state = state
        self._own = own
        self._secret = secret
        self._clock = clock
        self._held: dict[Digest, float] = {}  # with the time of the last renewal
        self._ending: set[asyncio.Task[None]] = set()

    async def take(self, digest: Digest, broken: str = "") -> str:
        """Take the lease of a blob if it is free, or held by the replica at ``broken``.

        Returns:
            the address of the holder, which may be this replica's own.

        Raises:
            StateDownError: the shared state cannot be asked.
        """
        holder = await self._holder(digest, broken)
        if holder == self._own:
            self._held[digest] = self._clock()
        return holder

    async def keeps(self, digest: Digest) -> bool:
        """Whether this replica still holds a lease that it took.

        A process that was frozen has not renewed its leases: it renews this one first.

        Raises:
            StateDownError: that is necessary, and the shared state cannot be asked.
        """
        if self._clock() - self._held.get(digest, math.inf) > _RENEW_SECONDS:
            await self._renew(digest)
        return digest in self._held

    def release(self, digest: Digest, *, stored: bool) -> None:
        """Give a lease back, if this replica holds it; ``stored``: others can get the blob here."""
        if self._held.pop(digest, None) is not None:
            ending = asyncio.create_task(self._release(digest, stored=stored), name="release")
            self._ending.add(ending)
            ending.add_done_callback(self._ending.discard)

    async def renew(self) -> None:
        """Renew all leases regularly; run it in the background."""
        while True:
            await asyncio.sleep(_RENEW_SECONDS)
            for digest in list(self._held):
                with contextlib.suppress(StateDownError):
                    await self._renew(digest)

    async def close(self) -> None:
        """Give all leases back."""
        for digest in list(self._held):
            self.release(digest, stored=False)
        await asyncio.gather(*self._ending)

    async def _renew(self, digest: Digest) -> None:
        """Renew a lease, unless another replica holds it now: then this one has lost it."""
        kept = await self._holder(digest) == self._own
        if digest not in self._held:  # released meanwhile
            return
        if kept:
            self._held[digest] = self._clock()
        else:
            del self._held[digest]

    async def _holder(self, digest: Digest, broken: str = "") -> str:
        """Take or renew a lease, as :meth:`take` does; return the address of its holder."""
        own = self._value(digest, self._own)
        former = self._value(digest, broken) if broken else ""
        milliseconds = round(_LEASE_SECONDS * 1000)
        found = await self._state.run("lease", _TAKE, f"lease:{digest}", own, former, milliseconds)
        said = found.decode(errors="replace") if isinstance(found, bytes) else ""
        address, _, signature = said.rpartition(" ")
        if not self._secret.knows(signature, "lease", str(digest), address):
            raise StateDownError("the lease is not signed")
        return address

    async def _release(self, digest: Digest, *, stored: bool) -> None:
        own = self._value(digest, self._own)
        milliseconds = round(_STORED_SECONDS * 1000) if stored else 0
        with contextlib.suppress(StateDownError):
            await self._state.run("lease", _RELEASE, f"lease:{digest}", own, milliseconds)

    def _value(self, digest: Digest, address: str) -> str:
        """The address with a signature: who can write to Redis cannot name another server."""
        return f"{address} {self._secret.sign('lease', str(digest), address)}"


@asynccontextmanager
async def opened_leases(state: State, own: str, secret: Secret) -> AsyncIterator[Leases]:
    """Renew the leases while the context is open, and give them back after it."""
    leases = Leases(state, own, secret)
    renewing = asyncio.create_task(leases.renew(), name="leases")
    try:
        yield leases
    finally:
        renewing.cancel()
        await asyncio.gather(renewing, return_exceptions=True)
        await leases.close()
