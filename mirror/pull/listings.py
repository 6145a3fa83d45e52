"""Listings: the tags of a repository and the referrers of a manifest.

They are upstream's to make; the mirror asks once for many and believes the answer for a while.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from mirror.oci.digest import Digest
from mirror.pull.blobs import Negatives
from mirror.pull.flight import Flights
from mirror.pull.outcome import Outcome
from mirror.upstream.answers import Listing
from mirror.upstream.directory import Target
from mirror.upstream.endpoints import Endpoints
from mirror.upstream.errors import NotFoundError


class Pages(Protocol):
    """Pages of listings, while they are fresh: a body and its header fields by name."""

    async def lookup(self, name: str) -> tuple[bytes, Mapping[str, str]] | None:
        """The page, or None."""

    async def put(self, name: str, body: bytes, fields: Mapping[str, str]) -> None:
        """Upstream has just said so."""


@dataclass(frozen=True, slots=True)
class ListingAnswer:
    """A page of a listing and how it was come by."""

    listing: Listing
    outcome: Outcome


class ListingPulls:
    """Answers for listings of every upstream."""

    def __init__(
        self, registries: Mapping[str, Endpoints], pages: Pages, negatives: Negatives
    ) -> None:
        self._registries = registries
        self._pages = pages
        self._negatives = negatives
        self._flights: Flights[str, Listing] = Flights()

    async def tags(self, target: Target, query: str) -> ListingAnswer:
        """A page of the tags of a repository; ``query`` goes to upstream as it is.

        Raises:
            UpstreamError: it cannot be had.
        """
        registry = self._registry(target)
        name = f"tags {target} {query}"
        return await self._asked(target, name, lambda: registry.tags(target.repository, query))

    async def referrers(self, target: Target, digest: Digest, query: str) -> ListingAnswer:
        """A page of what refers to a manifest; ``query`` goes to upstream as it is.

        Raises:
            UpstreamError: it cannot be had.
        """
        registry = self._registry(target)
        name = f"referrers {target} {digest} {query}"
        return await self._asked(
            target, name, lambda: registry.referrers(target.repository, digest, query)
        )

    async def close(self) -> None:
        """Break off what is under way."""
        await self._flights.close()

    def _registry(self, target: Target) -> Endpoints:
        return self._registries[target.upstream].known_as(target.visitor)

    async def _asked(
        self, target: Target, name: str, call: Callable[[], Awaitable[Listing]]
    ) -> ListingAnswer:
        fresh = await self._pages.lookup(name)
        if fresh is not None:
            body, fields = fresh
            return ListingAnswer(Listing(body, **fields), Outcome.HIT)
        said = await self._negatives.lookup(name)
        if said is not None:
            raise NotFoundError(target.upstream, said)
        try:
            listing, led = await self._flights.join(name, call)
        except NotFoundError as error:
            await self._negatives.put(name, error.message)
            raise
        fields = {
            "media_type": listing.media_type,
            "next_query": listing.next_query,
            "filters_applied": listing.filters_applied,
        }
        await self._pages.put(name, listing.body, fields)
        return ListingAnswer(listing, Outcome.MISS if led else Outcome.COALESCED)
