"""What rules know of digests and tags, for all replicas.

Without it, each replica would begin a cooldown anew: behind a load balancer, clients would get
the former and the new digest of a tag by turns, and a new replica would refuse both.
"""

import json
from collections.abc import Callable
from typing import Final

from mirror.cluster.secret import Secret
from mirror.cluster.state import State
from mirror.cluster.values import SealedValues
from mirror.oci.digest import Digest
from mirror.oci.image_glob import FullName
from mirror.policy.rules import Meanings, Moment, Seen
from mirror.store.interface import DecisionStore
from mirror.store.metadata.records import meanings_fields, parse_meanings

#: Each replica keeps its own records as long as it can; these are for the others.
_SECONDS: Final = 90 * 86400.0
#: Two replicas compute the same moment with small differences.
_LEAST_DIFFERENCE_SECONDS: Final = 1.0


class SharedDecisions:
    """The local records, and those of other replicas for what is unknown here.

    See :class:`mirror.store.interface.DecisionStore`.  A digest counts as first seen when the
    first replica saw it.  The records of private repositories are shared too, encrypted.
    """

    def __init__(
        self, local: DecisionStore, state: State, secret: Secret, clock: Callable[[], Moment]
    ) -> None:
        self._local = local
        self._clock = clock
        self._seen = SealedValues(state, secret, "seen", self._encode_seen, _decode_seen)
        self._meanings = SealedValues(state, secret, "means", _encode_meanings, _decode_meanings)

    async def seen(self, repository: str, digest: Digest) -> Seen | None:
        own = await self._local.seen(repository, digest)
        if own is None and await self.learn(repository, digest):
            own = await self._local.seen(repository, digest)
        return own

    async def see(self, repository: str, digest: Digest, seen: Seen) -> None:
        name = f"{repository} {digest}"
        found = await self._seen.lookup(name)
        known = seen if found is None else self._merged(seen, found[0])
        await self._local.see(repository, digest, known)
        await self._seen.put(name, known, _SECONDS)

    async def learn(self, repository: str, digest: Digest) -> bool:
        own = await self._local.seen(repository, digest)
        found = await self._seen.lookup(f"{repository} {digest}")
        if found is None:
            if own is not None:  # the shared state has lost it
                await self._seen.put(f"{repository} {digest}", own, _SECONDS)
            return False
        known = found[0] if own is None else self._merged(own, found[0])
        if known == own:
            return False
        await self._local.see(repository, digest, known)
        return True

    async def signers(self, repository: str, digest: Digest) -> frozenset[str]:
        return await self._local.signers(repository, digest)

    async def sign(self, repository: str, digest: Digest, keys: frozenset[str]) -> None:
        await self._local.sign(repository, digest, keys)

    async def meanings(self, name: str) -> Meanings:
        own = await self._local.meanings(name)
        if own.digests and not own.held:
            return own
        found = await self._meanings.lookup(name)
        if found is None:
            if own.held:  # the shared state has lost it
                await self._meanings.put(name, own, _SECONDS)
        elif found[0].digests and not own.digests:
            own = found[0]
            await self._local.mean(name, own)
        return own

    async def mean(self, name: str, meanings: Meanings) -> None:
        await self._local.mean(name, meanings)
        await self._meanings.put(name, meanings, _SECONDS)

    async def held(self) -> list[tuple[str, FullName, Meanings]]:
        return await self._local.held()

    def _merged(self, own: Seen, other: Seen) -> Seen:
        now, first = self._clock(), own.first
        if now.since(other.first) > now.since(first) + _LEAST_DIFFERENCE_SECONDS:
            first = other.first
        return Seen(first, own.released or other.released, own.passed or other.passed)

    def _encode_seen(self, seen: Seen) -> bytes:
        # Another machine knows wall time only.
        now = self._clock()
        first = now.wall - now.since(seen.first)
        fields = {"first": first, "released": seen.released, "passed": seen.passed}
        return json.dumps(fields).encode()


def _decode_seen(body: bytes) -> Seen:
    fields = json.loads(body)
    first = Moment(float(fields["first"]))
    return Seen(first, bool(fields["released"]), bool(fields["passed"]))


def _encode_meanings(meanings: Meanings) -> bytes:
    return json.dumps(meanings_fields(meanings)).encode()


def _decode_meanings(body: bytes) -> Meanings:
    return parse_meanings(json.loads(body))
