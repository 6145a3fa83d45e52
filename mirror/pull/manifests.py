"""Pulls of manifests by digest and by tag.

A manifest by digest is immutable: upstream is asked once.  A tag that is not fresh any more is
checked with HEAD (which does not count against Docker Hub's limit), and its manifest is fetched
only if the cache does not have it.  When upstream cannot answer, the last known manifest of the
tag is served, marked stale.
"""

import logging
import math
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final, Protocol, TypeVar

from mirror.oci.digest import Digest
from mirror.oci.image_glob import FullName
from mirror.oci.manifest import (
    Descriptor,
    NotAManifest,
    Schema1Unsupported,
    identify,
    media_types,
)
from mirror.oci.media_types import (
    ACCEPT_MANIFESTS,
    MANIFEST_TYPES,
    accepts,
    is_schema1,
    narrow_accept,
)
from mirror.oci.reference import Tag
from mirror.pull.errors import DigestMismatchError
from mirror.pull.outcome import Outcome
from mirror.pull.policy import usable_stale
from mirror.pull.refusals import Refusals
from mirror.pull.singleflight import SingleFlight
from mirror.shares import FullError
from mirror.store.local.eviction import NoRoomError
from mirror.store.local.manifests import Manifest, Manifests
from mirror.store.local.partial import PartialBusyError
from mirror.store.local.sqlite import IndexUnavailableError
from mirror.store.metadata.tags import Link, Tags, link_name
from mirror.upstream.endpoints import Endpoints
from mirror.upstream.errors import (
    LoginRefusedError,
    NonsenseError,
    NotFoundError,
    RateLimitedError,
    TimedOutError,
    UnavailableError,
    UpstreamError,
)
from mirror.upstream.responses import ManifestBody
from mirror.upstream.routing import Target

V = TypeVar("V")
_log = logging.getLogger(__name__)
_KNOWN_TYPES: Final = 10_000
_CANNOT_ANSWER = (
    *(UnavailableError, TimedOutError, RateLimitedError, LoginRefusedError, FullError),
)


class Observer(Protocol):
    """Receives the events of manifests."""

    def manifest_mismatched(self, upstream: str) -> None:
        """Upstream sent a manifest that does not match its digest."""


class Freshness(Protocol):
    """Fresh tags: those that upstream confirmed recently."""

    async def lookup(self, name: str) -> tuple[Descriptor, float] | None:
        """The descriptor of a fresh tag and the end of its freshness (monotonic seconds)."""

    async def put(self, name: str, descriptor: Descriptor) -> None:
        """Make a tag fresh: upstream has just sent ``descriptor``."""

    async def forget(self, name: str) -> None:
        """Make a tag not fresh, so that the next request asks upstream."""


@dataclass(frozen=True, slots=True)
class Resolution:
    """The descriptor that a reference resolves to; ``detail`` says why it is stale.

    ``until``: the end of a hit's freshness (monotonic seconds); 0 for other outcomes.
    ``private``: only for clients to which upstream has given access.
    """

    descriptor: Descriptor
    outcome: Outcome
    detail: str = ""
    until: float = 0.0
    private: bool = False


@dataclass(frozen=True, slots=True)
class ManifestAnswer:
    """A manifest and its outcome; other fields as for :class:`Resolution`."""

    manifest: Manifest
    outcome: Outcome
    detail: str = ""
    until: float = 0.0
    private: bool = False


@dataclass(frozen=True, slots=True)
class _Wanted:
    """The target and media types of a request.

    ``narrow`` is the client's Accept header if that excludes some types, else empty.
    """

    target: Target
    narrow: str

    @property
    def accept(self) -> str:
        return self.narrow or ACCEPT_MANIFESTS

    def name(self, reference: str) -> str:
        """The key of a reference in memory: freshness and refusals."""
        return f"{self.target} {reference} {self.narrow}".rstrip()

    def record(self, tag: Tag) -> str:
        """The key of a tag on disk, the same for all clients."""
        image = FullName(self.target.upstream, self.target.repository, tag)
        return link_name(image, self.narrow)


class ManifestPulls:
    """Answers pulls of manifests, for every upstream."""

    def __init__(
        self,
        registries: Mapping[str, Endpoints],
        manifests: Manifests,
        tags: Tags,
        freshness: Freshness,
        refusals: Refusals,
        observer: Observer,
        stale_if_error: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Serve stale tags while upstream cannot answer, for ``stale_if_error`` seconds."""
        self._registries = registries
        self._manifests = manifests
        self._tags = tags
        self._freshness = freshness
        self._refusals = refusals
        self._observer = observer
        self._stale_if_error = stale_if_error
        self._clock = clock
        self._media_types: OrderedDict[Digest, tuple[str, ...]] = OrderedDict()
        self._fetches: SingleFlight[tuple[_Wanted, str], Manifest] = SingleFlight("manifest")
        self._questions: SingleFlight[tuple[_Wanted, str], Resolution] = SingleFlight("tag")

    async def get(self, target: Target, reference: Tag | Digest, accept: str) -> ManifestAnswer:
        """Return the manifest of a tag or digest, of a media type that the client accepts.

        Raises:
            UpstreamError: the manifest is not in the cache, and upstream does not send it.
        """
        wanted = _Wanted(target, narrow_accept(accept))
        if isinstance(reference, Digest):
            return await self._by_digest(wanted, reference)
        resolution = await self._resolve(wanted, reference)
        meant = resolution.descriptor
        try:
            found = await self._by_digest(wanted, meant.digest, meant.media_type)
        except (NotFoundError, UnavailableError):
            # This address of the upstream may lack the digest that it named: ask the next one.
            if not self._registry(target).blame(target.repository, reference):
                raise
            await self._freshness.forget(wanted.name(reference))
            return await self.get(target, reference, accept)
        if found.outcome is Outcome.HIT:
            return ManifestAnswer(
                found.manifest, resolution.outcome, resolution.detail, resolution.until
            )
        return found

    async def head(self, target: Target, reference: Tag | Digest, accept: str) -> Resolution:
        """Return the descriptor of a manifest; fetch the manifest only if necessary.

        Raises:
            UpstreamError: the descriptor is unknown, and upstream does not send it.
        """
        wanted = _Wanted(target, narrow_accept(accept))
        if not isinstance(reference, Digest):
            return await self._resolve(wanted, reference)
        answer = await self._by_digest(wanted, reference)
        return Resolution(_described(answer.manifest), answer.outcome, until=answer.until)

    def touch(self, digest: Digest) -> None:
        """Record a use of a manifest that was served without a call of :meth:`get`."""
        self._manifests.touch(digest)

    async def forget(self, name: str) -> None:
        """Forget that a link (see ``store.metadata.tags``) is fresh, or refused."""
        await self._freshness.forget(name)
        await self._refusals.forget(_question_of(name))

    async def close(self) -> None:
        """Cancel all requests."""
        await self._questions.close()
        await self._fetches.close()

    def _registry(self, target: Target) -> Endpoints:
        return self._registries[target.upstream].with_credentials(target.principal)

    def _kept(self, target: Target) -> Manifests:
        return self._manifests.of(target.upstream)

    # By digest.

    async def _by_digest(self, wanted: _Wanted, digest: Digest, said: str = "") -> ManifestAnswer:
        stored = await self._lookup(wanted.target, digest, said)
        if stored is not None and accepts(wanted.narrow, stored.media_type):
            return ManifestAnswer(stored, Outcome.HIT, until=math.inf)
        manifest, led = await self._asked(
            self._fetches, wanted, str(digest), lambda: self._fetch(wanted, str(digest), digest)
        )
        return ManifestAnswer(manifest, Outcome.MISS if led else Outcome.COALESCED)

    async def _lookup(self, target: Target, digest: Digest, said: str = "") -> Manifest | None:
        """Return the stored manifest with the media type of its repository, or None.

        The bytes are the same in all repositories.  The media type may differ if the bytes do not
        state one: it is ``said``, else the one recorded for this repository, if the bytes allow it.
        """
        stored = await self._kept(target).lookup(digest)
        if stored is None:
            return None
        try:
            possible = self._possible(stored)
        except NotAManifest as error:  # stored by an earlier, less strict version
            _log.info("the stored manifest %s is not served: %s", digest, error)
            return None
        if len(possible) > 1 and said not in possible:
            link = await self._tags.lookup(link_name(_image(target, digest)))
            said = "" if link is None else link.descriptor.media_type
        media_type = said if said in possible else possible[0]
        # The same object where possible: all readers share one copy of a large manifest in memory.
        same = media_type == stored.media_type
        return stored if same else replace(stored, media_type=media_type)

    def _possible(self, manifest: Manifest) -> tuple[str, ...]:
        """The media types that a manifest may have; cached, since parsing 10 KiB takes 50 us."""
        possible = self._media_types.get(manifest.digest)
        if possible is None:
            possible = self._media_types[manifest.digest] = media_types(manifest.body)
            if len(self._media_types) > _KNOWN_TYPES:
                self._media_types.popitem(last=False)
        return possible

    async def _fetch(self, wanted: _Wanted, reference: str, digest: Digest | None) -> Manifest:
        """Fetch, verify and store a manifest."""
        manifest = await self._registry(wanted.target).get_manifest(
            wanted.target.repository,
            reference,
            wanted.accept,
            lambda answer: self._verified(wanted.target.upstream, answer, digest),
        )
        # All repositories share the row in the index: it has the media type that the bytes state.
        shared = replace(manifest, media_type=media_types(manifest.body)[0])
        try:
            await self._kept(wanted.target).put(shared)
        except (OSError, NoRoomError, IndexUnavailableError, PartialBusyError) as error:
            _log.info("manifest %s is served but could not be stored: %s", manifest.digest, error)
        else:
            await self._note_origin(wanted.target, manifest)
        return manifest

    def _verified(self, upstream: str, answer: ManifestBody, digest: Digest | None) -> Manifest:
        """Return the manifest in an answer of upstream.

        Raises:
            UpstreamError: the body is not a manifest, or does not match the digest.
        """
        expected = digest or answer.digest or Digest.of(answer.body)
        if Digest.of(answer.body, expected.algorithm) != expected:
            self._observer.manifest_mismatched(upstream)
            raise DigestMismatchError(upstream, f"sent bytes that are not {expected}")
        try:
            media_type = identify(answer.body, answer.media_type)
        except Schema1Unsupported as error:
            raise NotFoundError(upstream, f"has only {error}") from error
        except NotAManifest as error:
            raise NonsenseError(upstream, f"did not send a manifest: {error}") from error
        return Manifest(expected, media_type, answer.body, answer.hold)

    async def _note_origin(self, target: Target, manifest: Manifest) -> None:
        """Record the repository of a manifest, for listings of the cache."""
        link = Link(_described(manifest), self._clock())
        name = link_name(_image(target, manifest.digest))
        await self._write_down(self._tags.put(name, link))

    # By tag.

    async def _resolve(self, wanted: _Wanted, tag: Tag) -> Resolution:
        fresh = await self._freshness.lookup(wanted.name(tag))
        if fresh is not None:
            descriptor, until = fresh
            return Resolution(descriptor, Outcome.HIT, until=until)
        resolution, led = await self._asked(
            self._questions, wanted, tag, lambda: self._question(wanted, tag)
        )
        if led or resolution.outcome is Outcome.STALE:
            return resolution
        return Resolution(resolution.descriptor, Outcome.COALESCED)

    async def _question(self, wanted: _Wanted, tag: Tag) -> Resolution:
        """Ask upstream for the descriptor of a tag; fall back on the last known one."""
        name = wanted.record(tag)
        known = await self._known(wanted, tag)
        try:
            descriptor = await self._ask(wanted, tag)
        except NotFoundError:
            await self._write_down(self._tags.forget(name))
            raise
        except _CANNOT_ANSWER as error:
            stale = None if known is None else await self._servable(wanted.target, known)
            if stale is None:
                raise
            _log.info("serving %s stale: %s", name, error)
            return Resolution(_described(stale), Outcome.STALE, type(error).__name__)
        await self._freshness.put(wanted.name(tag), descriptor)
        await self._write_down(self._tags.put(name, Link(descriptor, self._clock())))
        same = known is not None and known.descriptor.digest == descriptor.digest
        return Resolution(descriptor, Outcome.REVALIDATED if same else Outcome.MISS)

    async def _known(self, wanted: _Wanted, tag: Tag) -> Link | None:
        """The last known link of a tag, for this Accept header or else for unrestricted clients.

        The latter counts only if this client accepts its media type.
        """
        link = await self._tags.lookup(wanted.record(tag))
        if link is None and wanted.narrow:
            link = await self._tags.lookup(replace(wanted, narrow="").record(tag))
            if link is not None and not accepts(wanted.narrow, link.descriptor.media_type):
                return None
        return link

    async def _ask(self, wanted: _Wanted, tag: Tag) -> Descriptor:
        registry = self._registry(wanted.target)
        try:
            head = await registry.head_manifest(wanted.target.repository, tag, wanted.accept)
        except UpstreamError as error:
            if not error.by_status:
                raise
            return _described(await self._fetch(wanted, tag, None))  # GET may not be refused
        if head.digest is not None:
            stored = await self._lookup(wanted.target, head.digest, head.media_type)
            if stored is not None:  # the bytes are more precise than the response headers
                if stored.media_type != self._possible(stored)[0]:
                    await self._note_origin(wanted.target, stored)
                return _described(stored)
        if is_schema1(head.media_type):  # not announced, since GET could not serve it
            raise NotFoundError(registry.name, f"has only {Schema1Unsupported()}")
        if head.digest is not None and head.size and head.media_type in MANIFEST_TYPES:
            return Descriptor(head.media_type, head.digest, head.size)
        return _described(await self._fetch(wanted, tag, None))

    async def _servable(self, target: Target, link: Link) -> Manifest | None:
        """The stored manifest of a stale link: HEAD must not announce one that GET cannot serve."""
        usable = usable_stale(link.seen, self._clock(), self._stale_if_error)
        if not (usable or link.imported):
            return None
        return await self._lookup(target, link.descriptor.digest, link.descriptor.media_type)

    async def _write_down(self, writing: Awaitable[None]) -> None:
        try:
            await writing
        except IndexUnavailableError as error:
            _log.info("a tag could not be written down: %s", error)

    # Both.

    async def _asked(
        self,
        flights: SingleFlight[tuple[_Wanted, str], V],
        wanted: _Wanted,
        reference: str,
        call: Callable[[], Awaitable[V]],
    ) -> tuple[V, bool]:
        """Send one request for all concurrent callers; remember a refusal for a while."""
        name = _question_of(wanted.name(reference))
        await self._refusals.check(wanted.target, name)
        try:
            return await flights.join((wanted, reference), call)
        except UpstreamError as error:
            await self._refusals.note(wanted.target, name, error)
            raise


def _question_of(link: str) -> str:
    """The key of a refusal of a manifest."""
    return f"manifest {link}"


def _image(target: Target, digest: Digest) -> FullName:
    """The full name of a manifest by digest."""
    return FullName(target.upstream, target.repository, str(digest))


def _described(manifest: Manifest) -> Descriptor:
    return Descriptor(manifest.media_type, manifest.digest, len(manifest.body))
