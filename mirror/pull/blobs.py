"""Pulls of blobs: from the cache, from a fill, or passed through from upstream."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from mirror.oci.digest import Digest
from mirror.pull.body import Content, PassingContent, Source, StoredContent
from mirror.pull.feed import Feeds
from mirror.pull.fill import Fill, Observer
from mirror.pull.fill_reader import GrowingContent, State
from mirror.pull.fills import Fills
from mirror.pull.outcome import NotLeadingError, Outcome
from mirror.pull.refusals import Question, Refusals
from mirror.pull.singleflight import SingleFlight
from mirror.pull.slots import Slots
from mirror.shares import asker
from mirror.spans import current
from mirror.store.interface import BlobStore
from mirror.upstream.endpoints import Endpoints
from mirror.upstream.errors import UpstreamError
from mirror.upstream.routing import Target


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
        growing = {State.ASKING, State.GROWING}
        return [fill for fill in self._begun if fill.reader.state in growing]

    async def close(self) -> None:
        """Cancel all downloads; the next start of the mirror resumes them."""
        await self._heads.close()
        for fill in list(self._begun):
            await fill.stop()

    async def finish(self) -> None:
        """Wait until all fills that this object began have ended."""
        for fill in list(self._begun):
            await fill.over()

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
        feed = None if self._feeds is None else self._feeds.feed(source, digest)
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
                await self._refusals.found(asked)
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
        """See :meth:`BlobPulls.get`."""
        return await self.public.get(target, digest, for_replica=True)

    async def head(self, target: Target, digest: Digest) -> BlobHead:
        """See :meth:`BlobPulls.head`."""
        return await self.public.head(target, digest, for_replica=True)

    def touch(self, digest: Digest) -> None:
        """See :meth:`BlobPulls.touch`."""
        self.public.touch(digest)


def _question(target: Target, digest: Digest) -> Question:
    return Question(target, "blob", str(digest), str(digest))
