"""Listings: the tags of a repository and the referrers of a manifest.

Upstream makes the listings; concurrent clients share one request, and its answer stays fresh for a
while.  When upstream cannot answer, the last known page is served, marked stale.  A last known 404
for the referrers of a manifest is repeated too: it tells clients to look for a tag instead.
"""

import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from mirror.oci.digest import Digest
from mirror.pull.outcome import Outcome
from mirror.pull.policy import usable_stale
from mirror.pull.refusals import Refusals
from mirror.pull.singleflight import SingleFlight
from mirror.shares import FullError, Shares
from mirror.store.interface import MOST_PAGE_BYTES, ListingStore, Page
from mirror.ttl_cache import TtlCache
from mirror.upstream.endpoints import Endpoints
from mirror.upstream.errors import (
    NotFoundError,
    RateLimitedError,
    TimedOutError,
    UnavailableError,
    UpstreamError,
)
from mirror.upstream.responses import Listing
from mirror.upstream.routing import Target

_log = logging.getLogger(__name__)
_CANNOT_ANSWER = (UnavailableError, TimedOutError, RateLimitedError, FullError)
#: The fields of a listing that are stored beside its body.
_FIELDS = ("next_query", "filters_applied")
#: A body and its header fields by name.
FreshPage = tuple[bytes, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class ListingAnswer:
    """A page of a listing and its outcome; ``detail`` says why it is stale.

    ``private``: only for clients to which upstream has given access.
    """

    listing: Listing
    outcome: Outcome
    detail: str = ""
    private: bool = False


@dataclass(frozen=True, slots=True)
class _Wanted:
    """One page; ``rest`` has the digest of the subject, if any, and the query."""

    target: Target
    kind: str
    rest: str

    @property
    def name(self) -> str:
        """The key of the page in memory: fresh pages, refusals, requests."""
        return f"{self.kind} {self.target} {self.rest}"

    @property
    def record(self) -> str:
        """The key of the page on disk, which a push does not change."""
        return f"{self.kind} {replace(self.target, since='')} {self.rest}"


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
        registry = self._registry(target)
        wanted = _Wanted(target, "tags", query)
        return await self._asked(wanted, lambda: registry.tags(target.repository, query))

    async def referrers(self, target: Target, digest: Digest, query: str) -> ListingAnswer:
        """Return a page of the referrers of a manifest; ``query`` goes to upstream unchanged.

        Raises:
            UpstreamError, FullError: as for :meth:`tags`.
        """
        registry = self._registry(target)
        wanted = _Wanted(target, "referrers", f"{digest} {query}")
        return await self._asked(
            wanted, lambda: registry.referrers(target.repository, digest, query)
        )

    async def close(self) -> None:
        """Cancel all requests."""
        await self._flights.close()

    def _registry(self, target: Target) -> Endpoints:
        return self._registries[target.upstream].with_credentials(target.principal)

    async def _asked(
        self, wanted: _Wanted, call: Callable[[], Awaitable[Listing]]
    ) -> ListingAnswer:
        name = wanted.name
        fresh = await self._pages.lookup(name)
        if fresh is not None:
            body, fields = fresh
            return ListingAnswer(Listing(body, **fields), Outcome.HIT)
        await self._refusals.check(wanted.target, name)
        try:
            listing, led = await self._flights.join(name, lambda: self._question(wanted, call))
        except _CANNOT_ANSWER as error:
            return await self._stale(wanted, error)
        except UpstreamError as error:
            await self._refusals.note(wanted.target, name, error)
            raise
        return ListingAnswer(listing, Outcome.MISS if led else Outcome.COALESCED)

    async def _question(self, wanted: _Wanted, call: Callable[[], Awaitable[Listing]]) -> Listing:
        """Ask upstream, and store its answer."""
        try:
            listing = await call()
        except NotFoundError:
            await self._kept.put(wanted.record, Page(None, {}, self._clock()))
            raise
        body, fields = listing.body, {name: getattr(listing, name) for name in _FIELDS}
        await self._pages.put(wanted.name, (body, {**fields, "hold": listing.hold}))
        await self._kept.put(wanted.record, Page(body, fields, self._clock()))
        return listing

    async def _stale(self, wanted: _Wanted, error: UpstreamError | FullError) -> ListingAnswer:
        """Return the last known page if it is recent enough; else raise ``error``."""
        hold = await self._answers.hold(wanted.target.upstream, MOST_PAGE_BYTES)
        page = await self._kept.lookup(wanted.record)
        body = None if page is None else page.body
        # Released here, unless the listing takes it: an error keeps its frames and their objects.
        hold.shrink(len(body or b""))
        if page is None or not usable_stale(page.seen, self._clock(), self._stale_if_error):
            hold.release()
            raise error
        if body is not None:
            _log.info("serving %s stale: %s", wanted.record, error)
            # Records of earlier versions have upstream's Content-Type as well.
            fields = {name: page.fields[name] for name in page.fields if name != "media_type"}
            listing = Listing(body, **fields, hold=hold)
            return ListingAnswer(listing, Outcome.STALE, type(error).__name__)
        if wanted.kind == "referrers":
            raise NotFoundError(
                wanted.target.upstream, f"had no such listing when last asked ({error})"
            )
        raise error
