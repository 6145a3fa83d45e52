"""Pulls for clients with their own credentials; upstream decides, asked with these.

A client gets private content only under two conditions:

*grant*: upstream has given this client access to this repository, at most ``grant_max_age`` ago,
and has checked the credentials themselves (not a token issued earlier);

*link*: upstream has confirmed that this repository has this object.  Knowing a digest is not
enough to get the object.

Public content needs neither, even if the client sends credentials: the mirror first asks upstream
as itself, and as the client only if upstream refuses.

Each kind of pull has two instances, one for public and one for private content, each with its own
store, freshness and requests.  :class:`PrivateAccess` decides which one answers.
"""

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final, TypeVar

from mirror.oci.digest import Digest
from mirror.oci.media_types import ACCEPT_MANIFESTS, narrow_accept
from mirror.oci.reference import Tag
from mirror.pull.blobs import BlobAnswer, BlobHead, BlobPulls
from mirror.pull.listings import ListingAnswer, ListingPulls
from mirror.pull.manifests import ManifestAnswer, ManifestPulls, Resolution
from mirror.pull.outcome import Outcome
from mirror.pull.refusals import CANNOT_ANSWER, Question, RecentRefusals
from mirror.pull.singleflight import SingleFlight
from mirror.store.interface import RepositoryLinks
from mirror.ttl_cache import TtlCache
from mirror.upstream.endpoints import Endpoints
from mirror.upstream.errors import (
    NotFoundError,
    RateLimitedError,
    RefusedError,
    TimedOutError,
    UnavailableError,
    UpstreamError,
)
from mirror.upstream.login import NOBODY, Principal
from mirror.upstream.routing import Target

R = TypeVar("R", BlobAnswer, BlobHead, ManifestAnswer, Resolution, ListingAnswer)
_log = logging.getLogger(__name__)
#: Errors without the client's credentials after which a request with them may succeed.
_NOT_FOR_ALL: Final = (RefusedError, NotFoundError, RateLimitedError)


@dataclass(frozen=True, slots=True)
class Resource:
    """A requested resource: a ``blob``, a ``manifest``, or a page of ``tags`` or ``referrers``.

    ``narrow``: see :class:`manifest_source.Wanted`; upstream has no such manifest for some clients.
    """

    kind: str
    reference: str | Digest = ""
    query: str = ""
    narrow: str = ""

    @property
    def linked(self) -> bool:
        """Whether the content is immutable, so that a link replaces a request to upstream."""
        return self.kind in {"blob", "manifest"} and isinstance(self.reference, Digest)

    async def confirm(self, registry: Endpoints, repository: str) -> None:
        """Request the resource from upstream, with the credentials of ``registry``.

        Raises:
            UpstreamError: upstream refuses the resource, or fails.
        """
        reference = str(self.reference)
        if self.kind == "manifest":
            accept = self.narrow or ACCEPT_MANIFESTS
            await registry.confirm(self.kind, repository, reference, accept)
        elif not isinstance(self.reference, Digest):
            await registry.origin.tags(repository, self.query)
        elif self.kind == "blob":
            await registry.confirm(self.kind, repository, reference)
        else:
            await registry.origin.referrers(repository, self.reference, self.query)


class PrivateAccess:
    """Decides whether a client gets a resource, and asks upstream about it."""

    def __init__(
        self,
        registries: Mapping[str, Endpoints],
        grants: TtlCache[bool],
        links: RepositoryLinks,
        refusals: RecentRefusals,
    ) -> None:
        self._registries = registries
        self._grants = grants
        self._links = links
        self._refusals = refusals
        self._questions: SingleFlight[Target, tuple[Resource, UpstreamError | None]] = SingleFlight(
            "grant"
        )

    async def greet(self, upstream: str, principal: Principal) -> None:
        """Ask an upstream whether it accepts the credentials of a client.

        Raises:
            UpstreamError: upstream refuses them, or fails.
        """
        await self._registries[upstream].with_credentials(principal).origin.greet()

    async def admitted(
        self,
        target: Target,
        thing: Resource,
        public: Callable[[Target], Awaitable[R]],
        private: Callable[[Target], Awaitable[R]],
    ) -> R:
        """Return the result of ``public``, or else of ``private`` if the client may have it.

        The client is the principal of ``target``; ``private`` marks the answer as for it alone.

        Raises:
            UpstreamError: upstream gives neither.
        """
        if await self._grants.lookup(str(target)) is None:
            try:
                try:
                    return await public(replace(target, principal=None))
                except _NOT_FOR_ALL as error:
                    if isinstance(error, RateLimitedError) and target.principal == NOBODY:
                        raise  # the mirror has already asked without credentials
                    await self._admit_after(error, target, thing)
            except (UnavailableError, TimedOutError) as error:
                text = "access to private content cannot be checked either"
                raise type(error)(error.upstream, f"{error.message}; {text}") from error
        elif not await self.has(target, thing):
            await self._confirm(target, thing)
        try:
            return replace(await private(target), private=True)
        except RefusedError:
            await self._grants.forget(str(target))
            raise

    async def has(self, target: Target, thing: Resource) -> bool:
        """Whether the repository has a link to the resource, or the resource needs none."""
        return not thing.linked or await self._links.has(_name(target, thing))

    async def link(self, target: Target, thing: Resource) -> None:
        """Record that upstream has just given the client the resource from this repository."""
        if not await self.has(target, thing):
            await self._links.put(_name(target, thing))

    async def close(self) -> None:
        """Cancel all requests."""
        await self._questions.close()

    async def _admit_after(self, refusal: UpstreamError, target: Target, thing: Resource) -> None:
        """Get a grant after upstream has refused the resource to the mirror.

        Raises:
            NotFoundError: upstream cannot be asked, and no client ever got more than this 404.
        """
        private = f"{target.record} private"
        try:
            await self._admit(target, thing)
        except CANNOT_ANSWER:
            if isinstance(refusal, NotFoundError) and not await self._links.has(private):
                raise refusal from None
            raise
        if not (isinstance(refusal, RateLimitedError) or await self._links.has(private)):
            await self._links.put(private)

    async def _admit(self, target: Target, thing: Resource) -> None:
        """Get a grant from upstream, with one request for all concurrent requests of the client."""
        if await self._grants.lookup(str(target)) is not None:  # another request got it meanwhile
            if not await self.has(target, thing):
                await self._confirm(target, thing)
            return
        (asked, error), _ = await self._questions.join(
            target, lambda: self._asked_anew(target, thing)
        )
        if error is None:
            if asked != thing and not await self.has(target, thing):
                await self._confirm(target, thing)
        elif asked == thing or not isinstance(error, NotFoundError):
            raise error
        else:
            # A 404 for another resource says nothing: ask for this one, even if it has a link.
            await self._confirm(target, thing)
            await self._grants.put(str(target), True)

    async def _asked_anew(
        self, target: Target, thing: Resource
    ) -> tuple[Resource, UpstreamError | None]:
        # Upstream checked the credentials when it issued the token, which may be long ago.
        await self._registry(target).origin.renew(target.repository)
        try:
            await self._confirm(target, thing)
        except UpstreamError as error:
            return thing, error
        await self._grants.put(str(target), True)
        return thing, None

    async def _confirm(self, target: Target, thing: Resource) -> None:
        """Request a resource from upstream with the client's credentials, and store the link.

        Raises:
            UpstreamError: upstream refuses the resource to this client, or fails.
        """
        reference = str(thing.reference)
        rest = f"{reference} {thing.narrow}".rstrip()
        question = Question(target, thing.kind, rest, reference)
        await self._refusals.check(question)
        try:
            await thing.confirm(self._registry(target), target.repository)
        except NotFoundError as error:
            await self._refusals.note(question, error)
            raise
        await self.link(target, thing)

    def _registry(self, target: Target) -> Endpoints:
        return self._registries[target.upstream].with_credentials(target.principal)


def _name(target: Target, thing: Resource) -> str:
    return f"{target.record} {thing.kind} {thing.reference}"


#: Outcomes without an answer from upstream.
_UNASKED: Final = {Outcome.HIT, Outcome.STALE}


@dataclass(frozen=True, slots=True)
class AuthorizedBlobs:
    """:class:`BlobPulls` with access control."""

    access: PrivateAccess
    public: BlobPulls
    private: BlobPulls

    async def get(self, target: Target, digest: Digest) -> BlobAnswer:
        if target.principal is None:
            return await self.public.get(target, digest)
        return await self.access.admitted(
            target,
            Resource("blob", digest),
            lambda open_to: self.public.get(open_to, digest),
            lambda own: self.private.get(own, digest),
        )

    async def head(self, target: Target, digest: Digest) -> BlobHead:
        if target.principal is None:
            return await self.public.head(target, digest)
        return await self.access.admitted(
            target,
            Resource("blob", digest),
            lambda open_to: self.public.head(open_to, digest),
            lambda own: self.private.head(own, digest),
        )

    def touch(self, digest: Digest) -> None:
        self.public.touch(digest)


@dataclass(frozen=True, slots=True)
class AuthorizedManifests:
    """:class:`ManifestPulls` with access control."""

    access: PrivateAccess
    public: ManifestPulls
    private: ManifestPulls

    async def get(self, target: Target, reference: Tag | Digest, accept: str) -> ManifestAnswer:
        if target.principal is None:
            return await self.public.get(target, reference, accept)
        answer = await self.access.admitted(
            target,
            Resource("manifest", reference, narrow=narrow_accept(accept)),
            lambda open_to: self.public.get(open_to, reference, accept),
            lambda own: self.private.get(own, reference, accept),
        )
        if answer.private and answer.outcome not in _UNASKED:
            await self.access.link(target, Resource("manifest", answer.manifest.digest))
        return answer

    async def head(self, target: Target, reference: Tag | Digest, accept: str) -> Resolution:
        if target.principal is None:
            return await self.public.head(target, reference, accept)
        answer = await self.access.admitted(
            target,
            Resource("manifest", reference, narrow=narrow_accept(accept)),
            lambda open_to: self.public.head(open_to, reference, accept),
            lambda own: self.private.head(own, reference, accept),
        )
        if answer.private and answer.outcome not in _UNASKED:
            await self.access.link(target, Resource("manifest", answer.descriptor.digest))
        return answer

    def touch(self, digest: Digest) -> None:
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
        if target.principal is None:
            return await self.public.tags(target, query)
        return await self.access.admitted(
            target,
            Resource("tags", query=query),
            lambda open_to: self.public.tags(open_to, query),
            lambda own: self.private.tags(own, query),
        )

    async def referrers(self, target: Target, digest: Digest, query: str) -> ListingAnswer:
        if target.principal is None:
            return await self.public.referrers(target, digest, query)
        return await self.access.admitted(
            target,
            Resource("referrers", digest, query),
            lambda open_to: self.public.referrers(open_to, digest, query),
            lambda own: self.private.referrers(own, digest, query),
        )
