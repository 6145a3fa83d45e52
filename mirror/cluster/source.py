"""Where a fill gets its bytes in a cluster: each place resumes at the byte that was reached.

The order is: the object store; the replica that leads the download; upstream.  A lease names the
replica that leads; if the shared state cannot tell, all replicas are asked, and if none leads, a
hash of the digest names one.  None of the places is trusted: the fill verifies the bytes, and a
place that sent wrong ones is not asked for that blob again for a while.
"""

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Final, Protocol

from mirror.cluster.leases import Leases
from mirror.cluster.peers import NotServedError, Peers
from mirror.cluster.places import BlobOfPlaces, Place
from mirror.cluster.shared import SharedBlobs
from mirror.cluster.state import StateDownError
from mirror.cluster.tier import TierError, TierMissError
from mirror.lru import Lru
from mirror.oci.digest import Digest
from mirror.pull.feed import Source
from mirror.pull.outcome import DigestMismatchError
from mirror.pull.parallel import Stream
from mirror.pull.slots import Slots
from mirror.spans import current
from mirror.upstream.errors import UpstreamError

_log = logging.getLogger(__name__)
_OBJECTS: Final = "object-store"
_REPLICA: Final = "replica"
#: After upstream was quiet for so long, or this process frozen, another replica may lead.
_QUIET_SECONDS: Final = 3.0
_WRONG_SECONDS: Final = 300.0
_MOST_WRONG: Final = 10_000


class Observer(Protocol):
    """Receives the events of leases."""

    def cluster_lease(self, result: str) -> None:
        """A download needs a leader; ``result`` says how this replica found it.

        leads: this replica; follows: another one; takes_over: this one, after the former leader
        failed; hands_over: another one, since this one is about to end; unknown: the shared state
        cannot tell.
        """


@dataclass(frozen=True, slots=True)
class Cluster:
    """Makes the feeds of this replica; a part that is not configured is None.

    ``stopping`` is set when this replica is about to end: then it begins no download that another
    one can begin, since the others may get its blob neither here nor from the object store in time.
    ``slots`` limit the downloads that are not from upstream.  They are apart, so that a download
    from upstream, for which another replica waits, never waits for one from that replica.
    """

    slots: Slots
    objects: SharedBlobs | None
    leases: Leases | None
    peers: Peers | None
    observer: Observer
    stopping: asyncio.Event
    clock: Callable[[], float] = time.monotonic
    _wrong: Lru[tuple[str, Digest], float] = field(default_factory=lambda: Lru(_MOST_WRONG))

    def feed(self, source: Source, digest: Digest) -> "ClusterFeed":
        """Return the feed of a fill, whose last place is ``source``."""
        return ClusterFeed(self, source, digest)

    def distrust(self, name: str, digest: Digest) -> None:
        """Note that a place sent wrong bytes for a blob."""
        self._wrong.put((name, digest), self.clock())

    def trusts(self, name: str, digest: Digest) -> bool:
        """Whether a place sent no wrong bytes for a blob lately."""
        wrong = self._wrong.get((name, digest))
        return wrong is None or wrong < self.clock() - _WRONG_SECONDS


class ClusterFeed:
    """The places of one fill; see :class:`mirror.pull.feed.Feed`."""

    several = True

    def __init__(self, cluster: Cluster, source: Source, digest: Digest) -> None:
        self.place = ""
        self.total: int | None = None
        self._cluster = cluster
        self._source = source
        self._digest = digest
        self._promised = False  # see `lead`
        self._leased = False  # this replica took the lease
        self._overtaken = False  # another one has taken the download over
        self._read_at = math.inf  # when upstream was last read from; at first, later than any time
        self._following = False  # a replica is asked, or sends the bytes
        self.leads = False  # see :meth:`mirror.pull.feed.Feed.leads`
        self._failure: TierError | None = None  # of the last place
        self._gave: set[str] = set()  # the names of the places whose bytes the fill has
        self._blamed = False
        self._new = True  # some bytes come from neither the object store nor a replica

    @asynccontextmanager
    async def spread(
        self, digest: Digest, start: int, arrived: Callable[[int], None]
    ) -> AsyncIterator[Stream]:
        """See :meth:`mirror.pull.feed.Feed.spread`."""
        assert digest == self._digest, "a feed is for one blob"
        if not start:
            self.total, self._new = None, False
        async with (
            aclosing(self._places(arrived)) as places,
            aclosing(BlobOfPlaces(self, places, start, arrived)) as blob,
        ):
            await blob.advance()
            try:
                yield blob
            finally:
                self._following = self.leads = False

    def lead(self) -> bool:
        """See :meth:`mirror.pull.feed.Feed.lead`."""
        self._promised = self._promised or not self._following
        return self._promised

    async def blame(self, digest: Digest) -> bool:
        """See :meth:`mirror.pull.feed.Feed.blame`."""
        other = self._source.registry.blame(digest)
        gave, self._gave = self._gave, set()
        self._blamed = bool(gave)
        for name in gave:
            _log.warning("%s has other bytes than %s; it is not asked for them", name, digest)
            self._cluster.distrust(name, digest)
        if _OBJECTS in gave and self._cluster.objects is not None:
            await self._cluster.objects.discard(digest)
        return other or self._blamed

    def mismatched(self, digest: Digest, error: UpstreamError) -> None:
        """See :meth:`mirror.pull.feed.Feed.mismatched`; `blame` has logged the other places."""
        if not self._blamed:
            self._source.mismatched(digest, error)

    def ended(self, digest: Digest, *, stored: bool) -> None:
        """See :meth:`mirror.pull.feed.Feed.ended`."""
        if self._cluster.leases is not None:
            self._cluster.leases.release(digest, stored=stored)
        if stored and self._new and self._cluster.objects is not None:
            self._cluster.objects.upload(digest)

    def opened(self, place: Place, stream: Stream) -> None:
        """Note that a place has the blob.

        Raises:
            TierError: its size is wrong.
        """
        if place.kind and self.total is not None and stream.total not in {None, self.total}:
            self._cluster.distrust(place.name, self._digest)
            raise TierError(f"{place.name} has {stream.total} bytes, not {self.total}")
        if place.kind and (stream.total or 0) > self.most_bytes:
            self._cluster.distrust(place.name, self._digest)
            raise TierError(f"{place.name} has {stream.total} bytes ([fetch] max_blob_size)")
        self.total = stream.total if self.total is None else self.total
        self.place = place.kind
        if place.kind:
            self._gave.add(place.name)
        else:
            self._new = True
        current().note({"mirror.place": place.kind or "upstream"})

    @property
    def most_bytes(self) -> int:
        """The size of the largest blob that is accepted, in bytes."""
        return self._source.registry.max_blob_bytes

    def oversized(self) -> DigestMismatchError:
        """Return the error for a place that sends more than ``most_bytes``."""
        text = f"sends more than {self.most_bytes} bytes ([fetch] max_blob_size)"
        return DigestMismatchError(self._source.registry.name, text)

    def slot(self) -> AbstractAsyncContextManager[None]:
        """Wait for a slot for a download that is not from upstream."""
        return self._cluster.slots.taken(self._source.registry.name)

    def failed(self, error: TierError) -> None:
        """Note that a place failed; another replica may be promised the bytes of the next one."""
        self._failure, self._following = error, False
        if not isinstance(error, TierMissError):
            _log.debug("%s: %s; asking the next place", self._digest, error)

    async def overtaken(self) -> bool:
        """Whether another replica has taken this download over, as when this one was frozen.

        Only once for a download: two replicas that do not reach each other both go on.
        """
        peers, leases, now = self._cluster.peers, self._cluster.leases, self._cluster.clock()
        quiet, self._read_at = now - self._read_at, now
        if peers is None or self._overtaken:
            return False
        if self._leased and leases is not None:
            with contextlib.suppress(StateDownError):
                self._overtaken = not await leases.keeps(self._digest)
                quiet = 0.0  # the lease says it
        if not 0 <= quiet <= _QUIET_SECONDS:
            order = peers.in_order(self._digest)
            # Of replicas that have begun at the same time, the first one in order goes on.
            rivals = order if quiet > 0 else order[: order.index(peers.own)]
            self._overtaken = await self._leader(peers, rivals) is not None
        if self._overtaken:
            _log.debug("%s: another replica has taken the download over", self._digest)
            self.leads = self._promised = False
        return self._overtaken

    # The order of the places.

    async def _places(self, arrived: Callable[[int], None]) -> AsyncGenerator[Place, None]:
        """Yield the places in order; the next one is asked for when one has failed.

        After upstream it is asked for when this replica was overtaken.
        """
        objects, peers, digest = self._cluster.objects, self._cluster.peers, self._digest
        source = self._source
        while True:
            if objects is not None and objects.up and self._cluster.trusts(_OBJECTS, digest):
                yield Place(_OBJECTS, _OBJECTS, lambda start: objects.open_blob(digest, start))
            if peers is not None:
                async with aclosing(self._replicas(peers)) as replicas:
                    async for address in replicas:
                        yield self._replica(peers, address)
            self.leads = True
            yield Place(
                source.registry.name, "", lambda start: source.spread(digest, start, arrived)
            )

    def _replica(self, peers: Peers, address: str) -> Place:
        registry, repository = self._source.registry.name, self._source.repository
        return Place(
            address,
            _REPLICA,
            lambda start: peers.open(address, registry, repository, self._digest, start),
        )

    async def _replicas(self, peers: Peers) -> AsyncGenerator[str, None]:
        """Yield the replicas to ask; after the last one, this replica leads."""
        leases, observer = self._cluster.leases, self._cluster.observer
        leader: str | None = None
        ending = self._cluster.stopping.is_set()
        if leases is not None and not ending:
            with contextlib.suppress(StateDownError):
                leader = await leases.take(self._digest)
        if leases is None or leader is None:
            observer.cluster_lease("hands_over" if ending else "unknown")
            candidates = self._by_rendezvous(peers, elsewhere=ending)
        else:
            former, self._leased = self._leased, leader == peers.own
            if former and not self._leased:
                self._promised = False  # this replica was overtaken
            observer.cluster_lease("leads" if self._leased else "follows")
            candidates = self._by_lease(peers, leases, leader)
        async with aclosing(candidates) as addresses:
            async for address in addresses:
                self._following = True  # until it fails
                yield address

    async def _by_lease(
        self, peers: Peers, leases: Leases, leader: str
    ) -> AsyncGenerator[str, None]:
        """Yield the holder of the lease, and the next one if another replica took it over."""
        asked = set[str]()
        while not self._promised and leader != peers.own and leader not in asked:
            asked.add(leader)
            if self._may_ask(peers, leader):
                yield leader
                if isinstance(self._failure, NotServedError):
                    return  # it lives: its lease stays
            try:
                leader = await leases.take(self._digest, broken=leader)
            except StateDownError:
                async with aclosing(self._by_rendezvous(peers, elsewhere=False)) as addresses:
                    async for address in addresses:
                        yield address
                return
            self._leased = leader == peers.own
            if self._leased:
                self._cluster.observer.cluster_lease("takes_over")

    async def _by_rendezvous(self, peers: Peers, *, elsewhere: bool) -> AsyncGenerator[str, None]:
        """Yield the replica that leads, then those that are to lead before this one.

        All are asked if ``elsewhere``, or if one of them does not lead.
        """
        order = peers.in_order(self._digest)
        before = order[: order.index(peers.own)]
        others = [each for each in order if each != peers.own]
        while not self._promised:
            leader = await self._leader(peers, others)
            able = [each for each in others if self._may_ask(peers, each)]  # each was asked now
            candidates = [each for each in able if elsewhere or each in before]
            address = leader or next(iter(candidates), None)
            if address is None or self._promised:
                return
            others.remove(address)
            yield address
            if isinstance(self._failure, NotServedError):
                elsewhere = True
                if self._failure.leading:
                    return

    async def _leader(self, peers: Peers, addresses: list[str]) -> str | None:
        """Ask some replicas at once which of them has the blob, or downloads it."""
        able = [each for each in addresses if each != peers.own and self._may_ask(peers, each)]
        registry, repository = self._source.registry.name, self._source.repository
        return await peers.leader(able, registry, repository, self._digest)

    def _may_ask(self, peers: Peers, address: str) -> bool:
        return peers.may_answer(address) and self._cluster.trusts(address, self._digest)
