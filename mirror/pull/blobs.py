"""Blobs: from the cache, from a fill, or passing through."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from mirror.oci.digest import Digest
from mirror.pull.body import Content, PassingContent, Source, StoredContent
from mirror.pull.fill import Fill, Observer
from mirror.pull.fill_reader import GrowingContent, State
from mirror.pull.fills import Fills
from mirror.pull.outcome import Outcome
from mirror.pull.refusals import Refusals
from mirror.pull.singleflight import SingleFlight
from mirror.pull.slots import Slots
from mirror.spans import current
from mirror.store.local.blobs import Blobs
from mirror.upstream.endpoints import Endpoints
from mirror.upstream.errors import UpstreamError
from mirror.upstream.routing import Target


@dataclass(frozen=True, slots=True)
class BlobAnswer:
    """A blob's body, the caller's to close, and how it was come by.

    ``private``: somebody else would not get it.
    """

    outcome: Outcome
    content: Content
    stored: bool
    private: bool = False


@dataclass(frozen=True, slots=True)
class BlobHead:
    """A blob's size in bytes (None where upstream does not say), and how it was come by."""

    outcome: Outcome
    size: int | None
    private: bool = False


class BlobPulls:
    """Answers for blobs of every upstream."""

    def __init__(
        self,
        registries: Mapping[str, Endpoints],
        blobs: Blobs,
        refusals: Refusals,
        observer: Observer,
        slots: Slots,
        fills: Fills,
    ) -> None:
        """Join what is among ``fills``, and begin others there."""
        self._registries = registries
        self._blobs = blobs
        self._refusals = refusals
        self._observer = observer
        self._slots = slots
        self._fills = fills
        self._begun: set[Fill] = set()
        self._heads: SingleFlight[tuple[Target, Digest], int | None] = SingleFlight("size")

    async def get(self, target: Target, digest: Digest) -> BlobAnswer:
        """Open a blob; it may still be growing.

        Raises:
            UpstreamError: it is not in the cache and cannot be had.
        """
        stored = await self._blobs.of(target.upstream).lookup(digest)
        if stored is not None:
            return BlobAnswer(Outcome.HIT, StoredContent(stored), True)
        source = Source(self._registry(target), target.repository, self._slots)
        while True:
            if self._joinable(digest, target.upstream) is None:  # else it comes without a question
                await self._refusals.check(target, _name(target, digest))
            fill, led = self._join(digest, source)
            try:
                return await self._read(fill, source, led=led)
            except UpstreamError as error:
                # Another repository's refusal says nothing about this one: lead a fill of its own.
                if fill.source == source:
                    await self._refusals.note(target, _name(target, digest), error)
                    raise

    async def head(self, target: Target, digest: Digest) -> BlobHead:
        """The size of a blob; upstream is asked where the cache does not know.

        Raises:
            UpstreamError: it is not in the cache and cannot be had.
        """
        stored = await self._blobs.of(target.upstream).lookup(digest)
        if stored is not None:
            stored.close()
            return BlobHead(Outcome.HIT, stored.size)
        fill = self._joinable(digest, target.upstream)
        verified = fill is not None and fill.reader.state is State.WHOLE
        # Before the digest is verified the size is the word of the upstream that sends the blob.
        own = fill is not None and fill.source.registry.name == target.upstream
        if fill is not None and fill.reader.total is not None and (verified or own):
            return BlobHead(Outcome.HIT if verified else Outcome.COALESCED, fill.reader.total)
        await self._refusals.check(target, _name(target, digest))
        registry = self._registry(target)
        try:
            size, led = await self._heads.join(
                (target, digest), lambda: registry.head_blob(target.repository, digest)
            )
        except UpstreamError as error:
            await self._refusals.note(target, _name(target, digest), error)
            raise
        return BlobHead(Outcome.MISS if led else Outcome.COALESCED, size)

    def touch(self, digest: Digest) -> None:
        """A blob was given out without being asked for here."""
        self._blobs.touch(digest)

    def under_way(self) -> list[Fill]:
        """The downloads that bring more, led here or elsewhere."""
        growing = {State.ASKING, State.GROWING}
        return [fill for fill in self._begun if fill.reader.state in growing]

    async def close(self) -> None:
        """Break off what is under way; it goes on after the next start."""
        await self._heads.close()
        for fill in list(self._begun):
            await fill.stop()

    async def finish(self) -> None:
        """Wait for the end of what was begun here."""
        for fill in list(self._begun):
            await fill.over()

    def _registry(self, target: Target) -> Endpoints:
        return self._registries[target.upstream].with_credentials(target.principal)

    def _joinable(self, digest: Digest, upstream: str) -> Fill | None:
        fill = self._fills.lookup(digest)
        if fill is None or not self._blobs.private or fill.source.registry.name == upstream:
            return fill
        return None  # what one upstream gives in private is not had by another's word

    def _join(self, digest: Digest, source: Source) -> tuple[Fill, bool]:
        upstream = source.registry.name
        fill = self._joinable(digest, upstream)
        if fill is not None:
            return fill, False
        fresh = Fill(digest, source, self._blobs.of(upstream), self._observer)
        self._begun.add(fresh)
        self._fills.begin(fresh, ended=lambda: self._begun.discard(fresh))
        return fresh, True

    async def _read(self, fill: Fill, source: Source, *, led: bool) -> BlobAnswer:
        self._fills.enter(fill)
        if not led:
            current().link(fill.span)
        try:
            verified = fill.reader.state is State.WHOLE  # joined between verification and adoption
            await fill.reader.started()
        except BaseException:
            self._fills.leave(fill)
            raise
        if fill.reader.kept:
            outcome = Outcome.MISS if led and not fill.followed else Outcome.COALESCED
            left = partial(self._fills.leave, fill)
            content = GrowingContent(fill.reader, source, self._fills.ahead, left)
            return BlobAnswer(Outcome.HIT if verified or fill.found else outcome, content, True)
        self._fills.leave(fill)
        passing = PassingContent(source, fill.digest, fill.digest.hasher(), 0)
        await passing.open()
        return BlobAnswer(Outcome.MISS, passing, False)


def _name(target: Target, digest: Digest) -> str:
    return f"blob {target} {digest}"
