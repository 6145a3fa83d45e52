"""Pulls for clients with their own credentials.

Each kind of pull has two instances, one for public and one for private content, each with its own
store, freshness and requests.  :class:`PrivateAccess` decides which one answers.
"""

from dataclasses import dataclass, replace

from mirror.oci.digest import Digest
from mirror.oci.media_types import narrow_accept
from mirror.oci.reference import Tag
from mirror.pull.blobs import BlobAnswer, BlobHead, BlobPulls
from mirror.pull.listings import ListingAnswer, ListingPulls
from mirror.pull.manifests import ManifestAnswer, ManifestPulls, Resolution
from mirror.pull.outcome import Outcome
from mirror.pull.private_access import PrivateAccess, Resource
from mirror.upstream.routing import Target

#: Outcomes without an answer from upstream.
_UNASKED = {Outcome.HIT, Outcome.STALE}


@dataclass(frozen=True, slots=True)
class AuthorizedBlobs:
    """:class:`BlobPulls` with access control."""

    access: PrivateAccess
    public: BlobPulls
    private: BlobPulls

    async def get(self, target: Target, digest: Digest) -> BlobAnswer:
        """See :meth:`BlobPulls.get`."""
        if target.principal is None:
            return await self.public.get(target, digest)

        async def private(target: Target) -> BlobAnswer:
            return replace(await self.private.get(target, digest), private=True)

        return await self.access.admitted(
            target,
            Resource("blob", digest),
            lambda open_to: self.public.get(open_to, digest),
            private,
        )

    async def head(self, target: Target, digest: Digest) -> BlobHead:
        """See :meth:`BlobPulls.head`."""
        if target.principal is None:
            return await self.public.head(target, digest)

        async def private(target: Target) -> BlobHead:
            return replace(await self.private.head(target, digest), private=True)

        return await self.access.admitted(
            target,
            Resource("blob", digest),
            lambda open_to: self.public.head(open_to, digest),
            private,
        )

    def touch(self, digest: Digest) -> None:
        """See :meth:`BlobPulls.touch`."""
        self.public.touch(digest)


@dataclass(frozen=True, slots=True)
class AuthorizedManifests:
    """:class:`ManifestPulls` with access control."""

    access: PrivateAccess
    public: ManifestPulls
    private: ManifestPulls

    async def get(self, target: Target, reference: Tag | Digest, accept: str) -> ManifestAnswer:
        """See :meth:`ManifestPulls.get`."""
        if target.principal is None:
            return await self.public.get(target, reference, accept)

        async def private(target: Target) -> ManifestAnswer:
            answer = await self.private.get(target, reference, accept)
            await self._link(target, answer.manifest.digest, answer.outcome)
            return replace(answer, private=True)

        return await self.access.admitted(
            target,
            Resource("manifest", reference, narrow=narrow_accept(accept)),
            lambda open_to: self.public.get(open_to, reference, accept),
            private,
        )

    async def head(self, target: Target, reference: Tag | Digest, accept: str) -> Resolution:
        """See :meth:`ManifestPulls.head`."""
        if target.principal is None:
            return await self.public.head(target, reference, accept)

        async def private(target: Target) -> Resolution:
            answer = await self.private.head(target, reference, accept)
            await self._link(target, answer.descriptor.digest, answer.outcome)
            return replace(answer, private=True)

        return await self.access.admitted(
            target,
            Resource("manifest", reference, narrow=narrow_accept(accept)),
            lambda open_to: self.public.head(open_to, reference, accept),
            private,
        )

    async def _link(self, target: Target, digest: Digest, outcome: Outcome) -> None:
        if outcome not in _UNASKED:
            await self.access.link(target, Resource("manifest", digest))

    def touch(self, digest: Digest) -> None:
        """See :meth:`ManifestPulls.touch`."""
        self.public.touch(digest)

    async def forget(self, name: str) -> None:
        """See :meth:`ManifestPulls.forget`; private answers are not forgotten, they expire."""
        await self.public.forget(name)


@dataclass(frozen=True, slots=True)
class AuthorizedListings:
    """:class:`ListingPulls` with access control."""

    access: PrivateAccess
    public: ListingPulls
    private: ListingPulls

    async def tags(self, target: Target, query: str) -> ListingAnswer:
        """See :meth:`ListingPulls.tags`."""
        if target.principal is None:
            return await self.public.tags(target, query)

        async def private(target: Target) -> ListingAnswer:
            return replace(await self.private.tags(target, query), private=True)

        return await self.access.admitted(
            target,
            Resource("tags", query=query),
            lambda open_to: self.public.tags(open_to, query),
            private,
        )

    async def referrers(self, target: Target, digest: Digest, query: str) -> ListingAnswer:
        """See :meth:`ListingPulls.referrers`."""
        if target.principal is None:
            return await self.public.referrers(target, digest, query)

        async def private(target: Target) -> ListingAnswer:
            return replace(await self.private.referrers(target, digest, query), private=True)

        return await self.access.admitted(
            target,
            Resource("referrers", digest, query),
            lambda open_to: self.public.referrers(open_to, digest, query),
            private,
        )
