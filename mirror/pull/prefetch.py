"""Downloads of layers before a client asks for them.

A client that gets the manifest of an image, and then asks for the first layer that the cache lacks,
will ask for the layers after it: each layer builds on those before.  Clients take few layers at a
time; the mirror begins the next ones meanwhile.  It never begins a layer before the one that was
asked for: the client may have it.

Only public content is fetched like this.  Private content is fetched at the request of a client
that has access to it.
"""

from collections import deque
from collections.abc import Callable
from contextvars import Context
from dataclasses import dataclass, field, replace
from typing import Final

from mirror.lru import Lru
from mirror.oci.digest import Digest
from mirror.oci.manifest import NotAManifest, image_layers
from mirror.pull.blobs import BlobAnswer, BlobPulls, Fills
from mirror.pull.fill import Fill
from mirror.pull.fill_reader import State
from mirror.pull.outcome import Outcome
from mirror.pull.policy import PREFETCHES, PREFETCHES_OF_CLIENT
from mirror.pull.slots import Slots
from mirror.shares import SMALL_BYTES, asker, asking
from mirror.store.interface import Manifest
from mirror.upstream.routing import Target

_MOST_PLANS: Final = 256
_MISSING: Final = {Outcome.MISS, Outcome.COALESCED}


@dataclass(eq=False, slots=True)
class _Plan:
    """The layers of the image that a client pulls."""

    client: str
    target: Target
    layers: tuple[Digest, ...]
    begun: bool = False
    rest: deque[Digest] = field(default_factory=deque)  # to download, in order
    fills: set[Fill] = field(default_factory=set)  # that this plan began
    unasked: set[Digest] = field(default_factory=set)  # downloaded, but not asked for yet
    reading: int = 0  # layers that the client is reading


class Prefetch:
    """Begins fills of the layers that clients are about to ask for."""

    def __init__(
        self,
        blobs: BlobPulls,
        fills: Fills,
        slots: Slots,
        withheld: Callable[[Target, Digest], bool],
    ) -> None:
        """``withheld``: whether a layer is blocked."""
        self._blobs = blobs
        self._fills = fills
        self._slots = slots
        self._withheld = withheld
        self._plans: Lru[tuple[str, Target], _Plan] = Lru(_MOST_PLANS)
        self._closed = False

    def expect(self, target: Target, manifest: Manifest) -> None:
        """Remember the layers of an image that the client has just got the manifest of."""
        if len(manifest.body) > SMALL_BYTES:  # no image has so many layers
            return
        try:
            layers = image_layers(manifest.body)
        except NotAManifest:
            return
        key = asker(), _public(target)
        known = self._plans.get(key)
        busy = known is not None and known.layers == layers and (known.reading or known.fills)
        if len(layers) > 1 and not busy:
            self._plans.put(key, _Plan(*key, layers))

    async def followed(
        self, target: Target, digest: Digest, answer: BlobAnswer
    ) -> tuple[BlobAnswer, Callable[[], None] | None]:
        """Begin the layers after the one that a client asks for, if it is the first missing one.

        Returns:
            The answer, and a function to call when the client has read the layer, or has left.
            The first answer with a layer that was fetched for this client counts as the miss.
        """
        plan = None if answer.private else self._plans.get((asker(), _public(target)))
        if plan is None or digest not in plan.layers:
            return answer, None
        if not plan.begun and answer.outcome in _MISSING and await self._is_first(plan, digest):
            plan.begun = True
            plan.rest.extend(plan.layers[plan.layers.index(digest) + 1 :])
        plan.reading += 1
        if digest in plan.unasked:
            plan.unasked.discard(digest)
            answer = replace(answer, outcome=Outcome.MISS)
        for fill in self._unread(plan):
            fill.keep()
        self._advance(plan)
        return answer, lambda: self._left(plan)

    def close(self) -> None:
        """Begin no more fills."""
        self._closed = True

    async def _is_first(self, plan: _Plan, digest: Digest) -> bool:
        """Whether the cache has all layers before this one, or is getting them."""
        for layer in plan.layers[: plan.layers.index(digest)]:
            if not await self._blobs.has(plan.target, layer):
                return False
        return not plan.begun

    def _unread(self, plan: _Plan) -> list[Fill]:
        return [fill for fill in plan.fills if fill in self._fills.prefetched]

    def _advance(self, plan: _Plan) -> None:
        # In a context of its own: a fill counts for the client, but not for the current request.
        if plan.reading and not self._closed:
            Context().run(self._begin_next, plan)

    def _begin_next(self, plan: _Plan) -> None:
        with asking(plan.client):
            while plan.rest and self._has_room(plan):
                digest = plan.rest.popleft()
                if self._withheld(plan.target, digest):
                    continue
                fill = self._blobs.prefetch(
                    plan.target, digest, lambda fill: self._ended(plan, fill)
                )
                if fill is not None:
                    plan.fills.add(fill)
                    plan.unasked.add(digest)

    def _has_room(self, plan: _Plan) -> bool:
        prefetched = self._fills.prefetched
        if len(prefetched) >= PREFETCHES:
            return False
        if sum(client == plan.client for client in prefetched.values()) >= PREFETCHES_OF_CLIENT:
            return False
        # Those that have just begun may not have taken their slots yet.
        asking_upstream = sum(fill.reader.state is State.ASKING for fill in prefetched)
        return self._slots.spare(plan.target.upstream) > asking_upstream

    def _left(self, plan: _Plan) -> None:
        plan.reading -= 1
        if not plan.reading:
            for fill in self._unread(plan):
                fill.linger()

    def _ended(self, plan: _Plan, fill: Fill) -> None:
        plan.fills.discard(fill)
        whole = fill.reader.state is State.WHOLE
        if fill.found or fill.followed or not whole:
            plan.unasked.discard(fill.digest)
        if not whole:  # upstream fails, the disk is full, or other downloads need the slot
            plan.rest.clear()
        self._advance(plan)


def _public(target: Target) -> Target:
    return target if target.principal is None else replace(target, principal=None)
