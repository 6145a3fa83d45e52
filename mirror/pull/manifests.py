"""Manifests by digest and by tag.

By digest they are immutable and upstream is asked once.  A tag is asked for with HEAD (which
does not count against Docker Hub's limit) when it is no longer fresh, and a manifest is fetched
only where the cache does not have it.  When upstream cannot answer, what the tag last meant is
served, marked stale.
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
_CANNOT_ANSWER = (UnavailableError, TimedOutError, RateLimitedError, FullError)


class Observer(Protocol):
    """Who wants to know of manifests that are not what they should be."""

    def manifest_mismatched(self, upstream: str) -> None:
        """Upstream sent a manifest that does not hash to its digest."""


class Freshness(Protocol):
    """Which tags need not be asked about."""

    async def lookup(self, name: str) -> tuple[Descriptor, float] | None:
        """What the tag means, if that is fresh, and until when (monotonic seconds) it is."""

    async def put(self, name: str, descriptor: Descriptor) -> None:
        """Upstream has just said so."""

    async def forget(self, name: str) -> None:
        """Ask upstream next time."""


@dataclass(frozen=True, slots=True)
class Resolution:
    """What a tag means and how that was come by; ``detail`` says why it is stale.

    ``until`` is when a hit has to be asked about again (monotonic seconds), 0 for what is no hit.
    ``private``: somebody else would not be told.
    """

    descriptor: Descriptor
    outcome: Outcome
    detail: str = ""
    until: float = 0.0
    private: bool = False


@dataclass(frozen=True, slots=True)
class ManifestAnswer:
    """A manifest and how it was come by; the rest as for a resolution."""

    manifest: Manifest
    outcome: Outcome
    detail: str = ""
    until: float = 0.0
    private: bool = False


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What one client asks for; ``narrow`` is the Accept header of a picky one, else empty."""

    target: Target
    narrow: str

    @property
    def accept(self) -> str:
        return self.narrow or ACCEPT_MANIFESTS

    def name(self, reference: str) -> str:
        """The name by which it is remembered what upstream said of it."""
        return f"{self.target} {reference} {self.narrow}".rstrip()

    def record(self, tag: Tag) -> str:
        """The name by which the disk knows a tag, whoever asks for it."""
        image = FullName(self.target.upstream, self.target.repository, tag)
        return link_name(image, self.narrow)


class ManifestPulls:
    """Answers for manifests of every upstream."""

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
        """Serve a tag stale for ``stale_if_error`` seconds while upstream cannot answer."""
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
        """The manifest of a tag or digest, in a form the client accepts.

        Raises:
            UpstreamError: it is not in the cache and cannot be had.
        """
        wanted = _Wanted(target, narrow_accept(accept))
        if isinstance(reference, Digest):
            return await self._by_digest(wanted, reference)
        resolution = await self._resolve(wanted, reference)
        meant = resolution.descriptor
        try:
            found = await self._by_digest(wanted, meant.digest, meant.media_type)
        except (NotFoundError, UnavailableError):
            # A mirror may have named a digest that it does not have: ask the next address.
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
        """What a manifest is, without fetching it where that is not needed.

        Raises:
            UpstreamError: it is not known and upstream does not say.
        """
        wanted = _Wanted(target, narrow_accept(accept))
        if not isinstance(reference, Digest):
            return await self._resolve(wanted, reference)
        answer = await self._by_digest(wanted, reference)
        return Resolution(_described(answer.manifest), answer.outcome, until=answer.until)

    def touch(self, digest: Digest) -> None:
        """A manifest was given out without being asked for here."""
        self._manifests.touch(digest)

    async def forget(self, name: str) -> None:
        """Ask upstream next time what a link (see ``store.tags``) means, or whether it is there."""
        await self._freshness.forget(name)
        await self._refusals.forget(_question_of(name))

    async def close(self) -> None:
        """Break off what is under way."""
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
        """The stored manifest as its repository sends it, or None.

        Its bytes are the same in all repositories.  A media type that they do not state is not: it
        is ``said``, or what this repository's own record says, as far as the bytes allow.
        """
        stored = await self._kept(target).lookup(digest)
        if stored is None:
            return None
        try:
            possible = self._possible(stored)
        except NotAManifest as error:  # of a former version, which took more for a manifest
            _log.info("the stored manifest %s is not served: %s", digest, error)
            return None
        if len(possible) > 1 and said not in possible:
            link = await self._tags.lookup(link_name(_image(target, digest)))
            said = "" if link is None else link.descriptor.media_type
        media_type = said if said in possible else possible[0]
        # The same object where it may be: a large manifest is in memory once for all who read it.
        same = media_type == stored.media_type
        return stored if same else replace(stored, media_type=media_type)

    def _possible(self, manifest: Manifest) -> tuple[str, ...]:
        """The media types that a manifest may have; reading one of 10 KiB takes 50 us."""
        possible = self._media_types.get(manifest.digest)
        if possible is None:
            possible = self._media_types[manifest.digest] = media_types(manifest.body)
            if len(self._media_types) > _KNOWN_TYPES:
                self._media_types.popitem(last=False)
        return possible

    async def _fetch(self, wanted: _Wanted, reference: str, digest: Digest | None) -> Manifest:
        """Fetch a manifest, verify it, store it."""
        manifest = await self._registry(wanted.target).get_manifest(
            wanted.target.repository,
            reference,
            wanted.accept,
            lambda answer: self._verified(wanted.target.upstream, answer, digest),
        )
        # The row in the index is for all repositories: it holds what the bytes say.
        shared = replace(manifest, media_type=media_types(manifest.body)[0])
        try:
            await self._kept(wanted.target).put(shared)
        except (OSError, NoRoomError, IndexUnavailableError, PartialBusyError) as error:
            _log.info("manifest %s is served but could not be kept: %s", manifest.digest, error)
        else:
            await self._note_origin(wanted.target, manifest)
        return manifest

    def _verified(self, upstream: str, answer: ManifestBody, digest: Digest | None) -> Manifest:
        """The manifest that an address sent.

        Raises:
            UpstreamError: it is none, or another one.
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
            raise NonsenseError(upstream, f"answered no manifest: {error}") from error
        return Manifest(expected, media_type, answer.body, answer.hold)

    async def _note_origin(self, target: Target, manifest: Manifest) -> None:
        """Write down what the manifest is called, for people who ask what is cached."""
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
        """Ask upstream what a tag means now, or fall back on what it last meant."""
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
        """What a tag last meant, to this kind of client or else to all, where this one takes it."""
        link = await self._tags.lookup(wanted.record(tag))
        if link is None and wanted.narrow:
            link = await self._tags.lookup(replace(wanted, narrow="").record(tag))
            if link is not None and not accepts(wanted.narrow, link.descriptor.media_type):
                return None
        return link

    async def _ask(self, wanted: _Wanted, tag: Tag) -> Descriptor:
        registry = self._registry(wanted.target)
        head = await registry.head_manifest(wanted.target.repository, tag, wanted.accept)
        if is_schema1(head.media_type):  # never advertised: it could not be served
            raise NotFoundError(registry.name, f"has only {Schema1Unsupported()}")
        if head.digest is not None and head.size is not None:
            stored = await self._lookup(wanted.target, head.digest, head.media_type)
            if stored is not None:  # its bytes say more than the fields of an answer
                if stored.media_type != self._possible(stored)[0]:
                    await self._note_origin(wanted.target, stored)
                return _described(stored)
            if head.media_type in MANIFEST_TYPES:
                return Descriptor(head.media_type, head.digest, head.size)
        return _described(await self._fetch(wanted, tag, None))

    async def _servable(self, target: Target, link: Link) -> Manifest | None:
        """What a tag last meant: it is only advertised stale where that can be served too."""
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
        """Ask upstream once for many, and remember for a while what it refuses."""
        name = _question_of(wanted.name(reference))
        await self._refusals.check(wanted.target, name)
        try:
            return await flights.join((wanted, reference), call)
        except UpstreamError as error:
            await self._refusals.note(wanted.target, name, error)
            raise


def _question_of(link: str) -> str:
    """The name under which it is remembered that upstream refuses a manifest."""
    return f"manifest {link}"


def _image(target: Target, digest: Digest) -> FullName:
    """The name of a manifest by its digest in a repository."""
    return FullName(target.upstream, target.repository, str(digest))


def _described(manifest: Manifest) -> Descriptor:
    return Descriptor(manifest.media_type, manifest.digest, len(manifest.body))
