"""Listings: the tags of a repository and the referrers of a manifest.

Upstream makes the listings; concurrent clients share one request, and its answer stays fresh for a
while.  When upstream cannot answer, the last known page is served, marked stale.  The mirrors of a
registry come last, and their pages are not stored: signatures that a mirror lacks would vanish.
"""

import json
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

from mirror.oci.digest import Digest
from mirror.pull.outcome import BrokenOffError, Outcome
from mirror.pull.policy import PASSING_BUFFER_BYTES, usable_stale
from mirror.pull.refusals import CANNOT_ANSWER, Question, Refusals
from mirror.pull.singleflight import SingleFlight
from mirror.shares import FullError, Shares
from mirror.store.interface import MOST_PAGE_BYTES, ListingStore, Page
from mirror.ttl_cache import TtlCache
from mirror.upstream.endpoints import Endpoints
from mirror.upstream.errors import NotFoundError, RefusedError, UpstreamError
from mirror.upstream.listings import TagStream
from mirror.upstream.registry import Registry
from mirror.upstream.responses import Listing
from mirror.upstream.routing import Target

_log = logging.getLogger(__name__)
_MOST_PARSED_BYTES: Final = 1024 * 1024  # 10 ms
#: Asks a registry for a page.
_Call = Callable[[Registry], Awaitable[Listing]]
#: The fields of a listing that are stored beside its body.
_FIELDS = ("next_query", "filters_applied")
#: A body and its header fields by name.
FreshPage = tuple[bytes, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class LargeListing:
    """A page as it passes through: its header fields, its size in bytes if known, its bytes."""

    listing: Listing
    size: int | None
    pieces: AsyncGenerator[bytes, None]


@dataclass(frozen=True, slots=True)
class ListingAnswer:
    """A page of a listing and its outcome; ``detail`` says why it is stale.

    ``private``: only for clients to which upstream has given access.  ``opened`` opens the page if
    it is too large to hold; the page and its size then come from upstream, and are not stored.
    """

    listing: Listing
    outcome: Outcome
    detail: str = ""
    private: bool = False
    opened: Callable[[], AbstractAsyncContextManager[LargeListing]] | None = None


class ListingPulls:
    """Answers pulls of listings, for every upstream."""

    def __init__(
        self,
        registries: Mapping[str, Endpoints],
        pages: TtlCache[FreshPage],
        kept: ListingStore,
        refusals: Refusals,
        answers: Shares,
        stale_if_error: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Serve stale listings while upstream cannot answer, for ``stale_if_error`` seconds.

        ``answers`` limits the bytes of pages that are read from the disk.
        """
        self._registries = registries
        self._pages = pages
        self._kept = kept
        self._refusals = refusals
        self._answers = answers
        self._stale_if_error = stale_if_error
        self._clock = clock
        self._flights: SingleFlight[str, Listing] = SingleFlight("listing")

    async def tags(self, target: Target, query: str) -> ListingAnswer:
        """Return a page of the tags of a repository; ``query`` goes to upstream unchanged.

        Raises:
            UpstreamError: upstream does not send the page, and no stale one may be served.
            FullError: a limit of the mirror is reached, and no stale page may be served.
        """
        wanted = Question(target, "tags", query, "")
        answer = await self._asked(wanted, lambda each: each.tags(target.repository, query))
        if not answer.listing.large:
            return answer
        return replace(answer, outcome=Outcome.MISS, opened=partial(self._open_tags, target, query))

    @asynccontextmanager
    async def _open_tags(self, target: Target, query: str) -> AsyncIterator[LargeListing]:
        registry = self._registry(target).origin
        opening = registry.open_tags(target.repository, query, PASSING_BUFFER_BYTES)
        async with opening as (listing, stream):
            yield LargeListing(listing, stream.total, _pieces(stream))

    async def referrers(self, target: Target, digest: Digest, query: str) -> ListingAnswer:
        """Return a page of the referrers of a manifest; ``query`` goes to upstream unchanged."""
        wanted = Question(target, "referrers", f"{digest} {query}", f"{digest} ")
        return await self._asked(
            wanted, lambda each: each.referrers(target.repository, digest, query)
        )

    async def close(self) -> None:
        """Cancel all requests."""
        await self._flights.close()

    def _registry(self, target: Target) -> Endpoints:
        return self._registries[target.upstream].with_credentials(target.principal)

    async def _asked(self, wanted: Question, call: _Call) -> ListingAnswer:
        name = wanted.name
        fresh = await self._pages.lookup(name)
        if fresh is not None:
            body, fields = fresh
            return ListingAnswer(Listing(body, **fields), Outcome.HIT)
        await self._refusals.check(wanted)
        try:
            listing, led = await self._flights.join(name, lambda: self._question(wanted, call))
        except (UpstreamError, FullError) as error:
            return await self._instead(wanted, call, error)
        if led:
            await self._refusals.found(wanted)
        return ListingAnswer(listing, Outcome.MISS if led else Outcome.COALESCED)

    async def _question(self, wanted: Question, call: _Call) -> Listing:
        """Ask the registry itself, and store its answer."""
        try:
            listing = await call(self._registry(wanted.target).origin)
        except NotFoundError:
            await self._kept.forget(wanted.page)
            raise
        self._registry(wanted.target).log.caught_up()
        body, fields = listing.body, {name: getattr(listing, name) for name in _FIELDS}
        other = {"large": listing.large, "hold": listing.hold}
        await self._pages.put(wanted.name, (body, {**fields, **other}))
        if listing.large:
            await self._kept.forget(wanted.page)
        else:
            page = Page(body, fields, self._clock())
            await self._kept.put(wanted.page, page)
            if wanted.most is not None and not listing.next_query:  # these are all tags
                await self._kept.put(wanted.whole.page, page)
        return listing

    async def _instead(
        self, wanted: Question, call: _Call, error: UpstreamError | FullError
    ) -> ListingAnswer:
        """Return the page to serve if the registry itself sends none.

        Raises:
            UpstreamError, FullError: there is none; ``error``, or the last known 404.
        """
        if isinstance(error, CANNOT_ANSWER) and (stale := await self._stale(wanted, error)):
            return stale
        refused = isinstance(error, RefusedError)
        if not refused:
            await self._refusals.note(wanted, error)
        if not isinstance(error, NotFoundError):
            answer = await self._from_mirrors(wanted, call, error.word)
            if answer is not None:
                return answer
        if refused:  # not before: the next client is to get the page of a mirror too
            await self._refusals.note(wanted, error)
        raise error

    async def _from_mirrors(
        self, wanted: Question, call: _Call, detail: str
    ) -> ListingAnswer | None:
        for number, mirror in enumerate(self._registry(wanted.target).mirrors):
            try:
                key = f"{wanted.name} mirror {number}"
                listing, led = await self._flights.join(key, partial(call, mirror))
            except (UpstreamError, FullError) as failure:
                _log.debug("%s; asking the next address", failure)
            else:
                outcome = Outcome.MISS if led else Outcome.COALESCED
                return ListingAnswer(listing, outcome, detail)
        return None

    async def _stale(
        self, wanted: Question, error: UpstreamError | FullError
    ) -> ListingAnswer | None:
        """Return the last known page if it is recent enough, else None."""
        hold = await self._answers.hold(wanted.target.upstream, MOST_PAGE_BYTES)
        for name in wanted.all_pages:
            page = await self._kept.lookup(name)
            body = None if page is None else page.body
            usable = page and usable_stale(page.seen, self._clock(), self._stale_if_error)
            if usable and (name == wanted.page or _fits(body, wanted.most)):
                break
        else:
            body = None
        # Released here, unless the listing takes it: an error keeps its frames and their objects.
        hold.shrink(len(body or b""))
        if page is None or body is None:
            hold.release()
            return None
        _log.debug("serving %s stale: %s", wanted.page, error)
        self._registry(wanted.target).log.fell_back(error.message)
        next_query, filters = (page.fields[name] for name in _FIELDS)
        listing = Listing(body, next_query, filters, hold=hold)
        return ListingAnswer(listing, Outcome.STALE, error.word)


async def _pieces(stream: TagStream) -> AsyncGenerator[bytes, None]:
    try:
        while piece := await stream.read():
            yield piece
    except UpstreamError as error:
        raise BrokenOffError(str(error)) from error


def _fits(body: bytes | None, most: int | None) -> bool:
    """Whether a list of all tags has at most so many; a large one, slow to parse, does not."""
    if most is None or body is None:
        return True
    if len(body) > _MOST_PARSED_BYTES:
        return False
    try:
        return len(json.loads(body).get("tags") or ()) <= most
    except (ValueError, TypeError, AttributeError, RecursionError):  # upstream's, as it came
        return False
