"""Pulls of blobs: from the cache, from a fill, or passed through from upstream.

Running fills outlive a reload of the configuration.  A fill keeps the configuration that began it,
and clients that arrive after the reload join it instead of downloading the same blob again.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final

from mirror.oci.digest import Digest
from mirror.pull.body import Content, GrowingContent, PassingContent, RangeFetches, StoredContent
from mirror.pull.feed import Feeds, Source
from mirror.pull.fill import Fill, Observer
from mirror.pull.fill_reader import State
from mirror.pull.outcome import NotLeadingError, Outcome
from mirror.pull.policy import UNWANTED_FILLS, UNWANTED_FILLS_OF_CLIENT
from mirror.pull.refusals import Question, Refusals
from mirror.pull.singleflight import SingleFlight
from mirror.pull.slots import Room, Slots
from mirror.shares import OPERATOR, asker
from mirror.spans import current
from mirror.stats.report import Filling
from mirror.store.interface import BlobStore
from mirror.upstream.endpoints import Endpoints
from mirror.upstream.errors import UpstreamError
from mirror.upstream.routing import Target


class Fills:
    """Running fills, by the digest of their blob."""

    def __init__(self, ahead: RangeFetches) -> None:
        """``ahead`` fetches the parts that lie too far ahead of a fill."""
        self.ahead = ahead
        self.room = Room()
        self._running: dict[Digest, Fill] = {}
        self._unread: dict[Fill, str] = {}  # fill -> the client that left it last
        self._unread_of: Counter[str] = Counter()
        self.prefetched: dict[Fill, str] = {}  # that no client has read -> its client

    def lookup(self, digest: Digest) -> Fill | None:
        """The fill of a blob that a client can join, or None."""
        fill = self._running.get(digest)
        return None if fill is None or fill.reader.state is State.FAILED else fill

    def begin(self, fill: Fill, ended: Callable[[], None]) -> None:
        """Start a fill and hold it until it ends; ``ended`` is called then."""
        self._running[fill.digest] = fill
        fill.start(ended=lambda: self._end(fill, ended))

    def enter(self, fill: Fill) -> None:
        """Add a reader to a fill."""
        self._forget_unread(fill)
        self.prefetched.pop(fill, None)
        fill.enter()

    def leave(self, fill: Fill) -> None:
        """Remove a reader from a fill; a few fills without readers continue for a moment."""
        if not fill.leave():
            return
        client = asker()
        # The operator's `mirror warm` begins many downloads, and comes back for each at once.
        if client != OPERATOR:
            if self._is_crowded(client):
                fill.give_up()
                return
            self._unread[fill] = client
            self._unread_of[client] += 1
        fill.linger()

    def give_way(self) -> None:
        """Stop the fills that no client has read yet: another download waits for a slot."""
        for fill in self.prefetched:
            fill.give_up()

    def _is_crowded(self, client: str) -> bool:
        return (
            len(self._unread) >= UNWANTED_FILLS
            or self._unread_of[client] >= UNWANTED_FILLS_OF_CLIENT
        )

    def _forget_unread(self, fill: Fill) -> None:
        client = self._unread.pop(fill, None)
        if client is not None:
            self._unread_of[client] -= 1
            self._unread_of += Counter()  # drops the clients with a count of 0

    def _end(self, fill: Fill, ended: Callable[[], None]) -> None:
        self.prefetched.pop(fill, None)
        ended()
        self._forget_unread(fill)
        # After a failure, a new fill may have begun before the task of this one ended.
        if self._running.get(fill.digest) is fill:
            del self._running[fill.digest]
            self.ahead.forget(fill.digest, spent=fill.reader.state is State.WHOLE)


#: The weight of the last sample: the rate is steady enough to read, and current within seconds.
_WEIGHT: Final = 0.4


class DownloadRates:
    """Computes the rate of each download from its last sample."""

    def __init__(self) -> None:
        self._samples: dict[Digest, tuple[int, float, float | None]] = {}  # length, time, rate

    def fillings(self, fills: Iterable[Fill], now: float) -> list[Filling]:
        """Return each download's state at ``now`` (monotonic seconds); new ones have rate 0."""
        fillings, samples = [], {}
        for fill in fills:
            length, total, digest = fill.reader.length, fill.reader.total, fill.digest
            rate = self._rate(digest, length, now)
            samples[digest] = (length, now, rate)
            place = (fill.source.registry.name, fill.source.repository)
            fillings.append(Filling(str(digest), *place, length, total, rate or 0.0, fill.waiting))
        self._samples = samples
        return fillings

    def _rate(self, digest: Digest, length: int, now: float) -> float | None:
        before, at, former = self._samples.get(digest, (0, now, None))
        if now <= at:
            return None
        rate = max(length - before, 0) / (now - at)
        return rate if former is None else _WEIGHT * rate + (1 - _WEIGHT) * former


@dataclass(frozen=True, slots=True)
class BlobAnswer:
    """A blob's body, which the caller closes, and its outcome.

    ``private``: only for clients to which upstream has given access.  ``place``: the kind of place
    that sends the bytes of a miss, empty for upstream.
    """

    outcome: Outcome
    content: Content
    stored: bool
    private: bool = False
    place: str = ""


@dataclass(frozen=True, slots=True)
class BlobHead:
    """A blob's size in bytes (None where upstream does not give it) and the outcome."""

    outcome: Outcome
    size: int | None
    private: bool = False


class BlobPulls:
    """Answers pulls of blobs, for every upstream."""

    def __init__(
        self,
        registries: Mapping[str, Endpoints],
        blobs: BlobStore,
        refusals: Refusals,
        observer: Observer,
        slots: Slots,
        fills: Fills,
        feeds: Feeds | None = None,
    ) -> None:
        """Join the running fills in ``fills``, and add new ones there.

        ``feeds``: where new fills get their bytes, by default from upstream alone.
        """
        self._registries = registries
        self._blobs = blobs
        self._refusals = refusals
        self._observer = observer
        self._slots = slots
        self._fills = fills
        self._feeds = feeds
        self._begun: set[Fill] = set()
        self._noting: set[asyncio.Task[None]] = set()
        self._heads: SingleFlight[tuple[Target, Digest], int | None] = SingleFlight("size")

    async def get(self, target: Target, digest: Digest, *, for_replica: bool = False) -> BlobAnswer:
        """Open a blob, which may still be growing.

        ``for_replica``: for another replica, which may be the one that this blob comes from.

        Raises:
            UpstreamError: the blob is not in the cache, and upstream does not send it.
            NotLeadingError: it comes from a replica, and must not go to another one.
        """
        stored = await self._blobs.of(target.upstream).lookup(digest)
        if stored is not None:
            return BlobAnswer(Outcome.HIT, StoredContent(stored), True)
        source = Source(self._registry(target), target.repository, self._slots)
        question = _question(target, digest)
        while True:
            if self._joinable(digest, target.upstream) is None:  # else no request goes upstream
                await self._refusals.check(question)
            fill, led = self._join(digest, source)
            if for_replica and not fill.feed.lead():
                text = f"another replica downloads {digest}"
                raise NotLeadingError(target.upstream, text)
            try:
                return await self._read(fill, source, question if led else None)
            except UpstreamError as error:
                # Another repository's refusal says nothing about this one: begin a new fill.
                if fill.source == source:
                    await self._refusals.note(question, error)
                    raise

    async def head(self, target: Target, digest: Digest, *, for_replica: bool = False) -> BlobHead:
        """Return the size of a blob; ask upstream if the cache does not know the size.

        ``for_replica``: another replica asks whether this one has the blob, or downloads it.

        Raises:
            UpstreamError: the blob is not in the cache, and upstream refuses or fails.
            NotLeadingError: this replica neither has nor downloads it.
        """
        stored = await self._blobs.of(target.upstream).lookup(digest)
        if stored is not None:
            stored.close()
            return BlobHead(Outcome.HIT, stored.length)
        fill = self._joinable(digest, target.upstream)
        if for_replica:
            if fill is None or not fill.feed.leads:
                raise NotLeadingError(target.upstream, f"this replica does not download {digest}")
            return BlobHead(Outcome.COALESCED, fill.reader.total)
        verified = fill is not None and fill.reader.state is State.WHOLE
        # Before the digest is verified, only the upstream that sends the blob vouches for the size.
        own = fill is not None and fill.source.registry.name == target.upstream
        if fill is not None and fill.reader.total is not None and (verified or own):
            return BlobHead(Outcome.HIT if verified else Outcome.COALESCED, fill.reader.total)
        question = _question(target, digest)
        await self._refusals.check(question)
        registry = self._registry(target)
        try:
            size, led = await self._heads.join(
                (target, digest), lambda: registry.head_blob(target.repository, digest)
            )
        except UpstreamError as error:
            await self._refusals.note(question, error)
            raise
        if led:
            await self._refusals.found(question)
        return BlobHead(Outcome.MISS if led else Outcome.COALESCED, size)

    def touch(self, digest: Digest) -> None:
        """Record a use of a blob that was served without a call of :meth:`get`."""
        self._blobs.touch(digest)

    async def has(self, target: Target, digest: Digest) -> bool:
        """Whether a blob is in the cache, or on its way there."""
        if self._joinable(digest, target.upstream) is not None:
            return True
        stored = await self._blobs.of(target.upstream).lookup(digest)
        if stored is None:
            return False
        stored.close()
        return True

    def prefetch(
        self, target: Target, digest: Digest, ended: Callable[[Fill], None]
    ) -> Fill | None:
        """Begin a fill before a client asks for it; None if a fill of the blob is running."""
        if self._joinable(digest, target.upstream) is not None:
            return None
        source = Source(self._registry(target), target.repository, self._slots)
        fill = self._begin(digest, source, ended)
        self._fills.prefetched[fill] = asker()
        return fill

    def under_way(self) -> list[Fill]:
        """The downloads that still make progress, led by this process or by another one."""
        return [fill for fill in self._begun if not fill.reader.ended]

    async def close(self) -> None:
        """Cancel all downloads; the next start of the mirror resumes them."""
        await self._heads.close()
        for fill in list(self._begun):
            await fill.stop()
        await asyncio.gather(*self._noting, return_exceptions=True)

    async def finish(self) -> None:
        """Wait until all fills that this object began have ended."""
        for fill in list(self._begun):
            await fill.over()
        await asyncio.gather(*self._noting, return_exceptions=True)

    def _note_found(self, question: Question) -> None:
        """Forget an earlier 404; the client does not wait for the look into the database."""
        noting = asyncio.create_task(self._refusals.found(question), name="found")
        self._noting.add(noting)
        noting.add_done_callback(self._noting.discard)

    def _registry(self, target: Target) -> Endpoints:
        return self._registries[target.upstream].with_credentials(target.principal)

    def _joinable(self, digest: Digest, upstream: str) -> Fill | None:
        fill = self._fills.lookup(digest)
        if fill is None or not self._blobs.private or fill.source.registry.name == upstream:
            return fill
        return None  # one upstream must not grant access to private content of another

    def _join(self, digest: Digest, source: Source) -> tuple[Fill, bool]:
        fill = self._joinable(digest, source.registry.name)
        return (self._begin(digest, source), True) if fill is None else (fill, False)

    def _begin(
        self, digest: Digest, source: Source, ended: Callable[[Fill], None] = lambda _: None
    ) -> Fill:
        blobs, room = self._blobs.of(source.registry.name), self._fills.room
        feed = source if self._feeds is None else self._feeds.feed(source, digest)
        fill = Fill(digest, source, blobs, self._observer, room, feed)

        def over() -> None:
            self._begun.discard(fill)
            ended(fill)

        self._begun.add(fill)
        self._fills.begin(fill, over)
        return fill

    async def _read(self, fill: Fill, source: Source, asked: Question | None) -> BlobAnswer:
        """``asked``: the question of the client that leads the fill; None for the others."""
        self._fills.enter(fill)
        if asked is None:
            current().link(fill.span)
        try:
            verified = fill.reader.state is State.WHOLE  # joined before the adoption
            await fill.reader.started()
            if asked is not None:
                self._note_found(asked)
        except BaseException:
            self._fills.leave(fill)
            raise
        if fill.reader.has_content:
            outcome = Outcome.MISS if asked and not fill.followed else Outcome.COALESCED
            left = partial(self._fills.leave, fill)
            content = GrowingContent(fill.reader, source, self._fills.ahead, left)
            if verified or fill.found:
                return BlobAnswer(Outcome.HIT, content, True)
            return BlobAnswer(outcome, content, True, place=fill.feed.place)
        self._fills.leave(fill)
        passing = PassingContent(source, fill.digest, fill.digest.hasher(), 0)
        await passing.open()
        return BlobAnswer(Outcome.MISS, passing, False)


@dataclass(frozen=True, slots=True)
class BlobsForReplicas:
    """:class:`BlobPulls` for other replicas: blobs that do not come from one of them."""

    public: BlobPulls

    async def get(self, target: Target, digest: Digest) -> BlobAnswer:
        return await self.public.get(target, digest, for_replica=True)

    async def head(self, target: Target, digest: Digest) -> BlobHead:
        return await self.public.head(target, digest, for_replica=True)

    def touch(self, digest: Digest) -> None:
        self.public.touch(digest)


def _question(target: Target, digest: Digest) -> Question:
    return Question(target, "blob", str(digest), str(digest))
