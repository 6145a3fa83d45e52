"""Pulls of manifests by digest and by tag.

A manifest by digest is immutable: upstream is asked once.  A tag that is not fresh any more is
checked with HEAD (which does not count against Docker Hub's limit), and its manifest is fetched
only if the cache does not have it, also for a client that sends HEAD: the tag can then be had
offline.  When upstream cannot answer, the last known manifest of the tag is served, marked stale.
"""

import logging
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Final, TypeVar

from mirror.lru import Lru
from mirror.oci.digest import Digest
from mirror.oci.manifest import Descriptor, Schema1Unsupported
from mirror.oci.media_types import INDEX_TYPES, MANIFEST_TYPES, accepts, is_schema1, narrow_accept
from mirror.oci.reference import Tag
from mirror.pull.manifest_source import ManifestSource, Wanted, described
from mirror.pull.outcome import Outcome
from mirror.pull.policy import usable_stale
from mirror.pull.refusals import CANNOT_ANSWER, Question, Refusals
from mirror.pull.singleflight import SingleFlight
from mirror.shares import FullError
from mirror.store.interface import Link, Manifest, TagStore
from mirror.ttl_cache import TtlCache
from mirror.upstream.errors import NonsenseError, NotFoundError, UnavailableError, UpstreamError
from mirror.upstream.routing import Target

V = TypeVar("V")
_log = logging.getLogger(__name__)
_KIND: Final = "manifest"
_MOST_AHEAD: Final = 1_000


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


class ManifestPulls:
    """Answers pulls of manifests, for every upstream.

    Raises UpstreamError if the cache does not have the content, and upstream does not send it.
    """

    def __init__(
        self,
        source: ManifestSource,
        tags: TagStore,
        freshness: TtlCache[Descriptor],
        refusals: Refusals,
        stale_if_error: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Serve stale tags while upstream cannot answer, for ``stale_if_error`` seconds."""
        self._source = source
        self._tags = tags
        self._freshness = freshness
        self._refusals = refusals
        self._stale_if_error = stale_if_error
        self._clock = clock
        # Fetched for a HEAD: the first GET counts as the miss, since its bytes came from upstream.
        self._ahead: Lru[Digest, bool] = Lru(_MOST_AHEAD)
        self._fetches: SingleFlight[tuple[Wanted, str], Manifest] = SingleFlight("manifest")
        self._questions: SingleFlight[tuple[Wanted, str], Resolution] = SingleFlight("tag")

    async def get(self, target: Target, reference: Tag | Digest, accept: str) -> ManifestAnswer:
        """Return the manifest of a tag or digest, of a media type that the client accepts."""
        wanted = Wanted(target, narrow_accept(accept))
        if isinstance(reference, Digest):
            answer = await self._by_digest(wanted, reference)
        else:
            resolution = await self._resolve(wanted, reference)
            answer = await self._meant(wanted, reference, resolution)
        if answer.outcome is Outcome.HIT and self._ahead.pop(answer.manifest.digest):
            return replace(answer, outcome=Outcome.MISS)
        return answer

    async def _meant(self, wanted: Wanted, tag: Tag, resolution: Resolution) -> ManifestAnswer:
        """Return the manifest that a tag has resolved to."""
        meant, repository = resolution.descriptor, wanted.target.repository
        try:
            found = await self._by_digest(wanted, meant.digest, meant.media_type)
        except (NotFoundError, UnavailableError) as error:
            blamed = self._source.registry(wanted.target).blame(repository, tag)
            if not (blamed or isinstance(error, NotFoundError)):
                raise
            for each in (wanted, wanted.wide):
                await self._freshness.forget(each.name(tag))
            if blamed:  # this address may lack the digest that it named: ask the next one
                return await self._meant(wanted, tag, await self._resolve(wanted, tag))
            return await self._by_tag(wanted, tag)  # it may have moved since it was resolved
        if found.outcome is Outcome.HIT:
            return ManifestAnswer(
                found.manifest, resolution.outcome, resolution.detail, resolution.until
            )
        return found

    async def head(self, target: Target, reference: Tag | Digest, accept: str) -> Resolution:
        """Return the descriptor of a manifest, and have the manifest in the cache if possible."""
        wanted = Wanted(target, narrow_accept(accept))
        if isinstance(reference, Digest):
            answer = await self._by_digest(wanted, reference)
        else:
            resolution = await self._resolve(wanted, reference)
            try:
                answer = await self._meant(wanted, reference, resolution)
            except NonsenseError:  # GET could not serve what HEAD announces
                raise
            except CANNOT_ANSWER as error:
                _log.debug("cannot fetch the manifest of %s: %s", wanted.name(reference), error)
                return resolution
            if answer.outcome is Outcome.MISS:
                self._ahead.put(answer.manifest.digest, True)
        manifest = described(answer.manifest)
        return Resolution(manifest, answer.outcome, answer.detail, answer.until)

    def touch(self, digest: Digest) -> None:
        """Record a use of a manifest that was served without a call of :meth:`get`."""
        self._source.touch(digest)

    async def forget(self, name: str) -> None:
        """Forget that a link (see ``store.metadata.records``) is fresh, or refused."""
        await self._freshness.forget(name)
        await self._refusals.forget(f"{_KIND} {name}")

    async def close(self) -> None:
        """Cancel all requests."""
        await self._questions.close()
        await self._fetches.close()

    # By digest.

    async def _by_digest(self, wanted: Wanted, digest: Digest, said: str = "") -> ManifestAnswer:
        stored = await self._source.lookup(wanted.target, digest, said)
        if stored is not None:  # the client named these bytes, of whatever media type they are
            return ManifestAnswer(stored, Outcome.HIT, until=math.inf)
        manifest, led = await self._asked(
            self._fetches,
            wanted,
            str(digest),
            lambda: self._source.fetch(wanted, str(digest), digest),
        )
        return ManifestAnswer(manifest, Outcome.MISS if led else Outcome.COALESCED)

    # By tag.

    async def _resolve(self, wanted: Wanted, tag: Tag) -> Resolution:
        for each in dict.fromkeys((wanted, wanted.wide)):
            fresh = await self._freshness.entry(each.name(tag))
            # What upstream has sent for this very Accept header needs no check.
            if fresh and (each == wanted or accepts(wanted.narrow, fresh[0].media_type)):
                descriptor, until = fresh
                return Resolution(descriptor, Outcome.HIT, until=until)
        resolution, led = await self._asked(
            self._questions, wanted, tag, lambda: self._question(wanted, tag)
        )
        if led or resolution.outcome is Outcome.STALE:
            return resolution
        return Resolution(resolution.descriptor, Outcome.COALESCED)

    async def _question(self, wanted: Wanted, tag: Tag) -> Resolution:
        """Ask upstream for the descriptor of a tag; fall back on the last known one."""
        name = wanted.record(tag)
        known = await self._known(wanted, tag)
        try:
            descriptor = await self._ask(wanted, tag)
        except NotFoundError:
            await self._source.write_down(self._tags.forget(name))
            raise
        except CANNOT_ANSWER as error:
            stale = None if known is None else await self._servable(wanted.target, known)
            if stale is None:
                raise
            _log.debug("serving %s stale: %s", name, error)
            self._source.registry(wanted.target).log.fell_back(error.message)
            return Resolution(described(stale), Outcome.STALE, error.word)
        await self._confirmed(wanted, tag, descriptor)
        same = known is not None and known.descriptor.digest == descriptor.digest
        return Resolution(descriptor, Outcome.REVALIDATED if same else Outcome.MISS)

    async def _by_tag(self, wanted: Wanted, tag: Tag) -> ManifestAnswer:
        """Fetch the manifest that a tag names now, with one request."""

        async def fetch() -> Manifest:
            manifest = await self._source.fetch(wanted, tag, None)
            await self._confirmed(wanted, tag, described(manifest))
            return manifest

        manifest, led = await self._asked(self._fetches, wanted, tag, fetch)
        return ManifestAnswer(manifest, Outcome.MISS if led else Outcome.COALESCED)

    async def _confirmed(self, wanted: Wanted, tag: Tag, descriptor: Descriptor) -> None:
        """Record what upstream has just said about a tag."""
        self._source.registry(wanted.target).log.caught_up()
        link = Link(descriptor, self._clock())
        for each in (wanted, wanted.wide) if _is_unconverted(wanted, descriptor) else (wanted,):
            await self._freshness.put(each.name(tag), descriptor)
            await self._source.write_down(self._tags.put(each.record(tag), link))

    async def _known(self, wanted: Wanted, tag: Tag) -> Link | None:
        """The last known link of a tag, for this Accept header or else for unrestricted clients.

        The latter counts only if this client accepts its media type.
        """
        link = await self._tags.lookup(wanted.record(tag))
        if link is None and wanted.narrow:
            link = await self._tags.lookup(wanted.wide.record(tag))
            if link is not None and not accepts(wanted.narrow, link.descriptor.media_type):
                return None
        return link

    async def _ask(self, wanted: Wanted, tag: Tag) -> Descriptor:
        registry = self._source.registry(wanted.target)
        try:
            head = await registry.head_manifest(wanted.target.repository, tag, wanted.accept)
        except UpstreamError as error:
            if not error.by_status:
                raise
            return described(await self._source.fetch(wanted, tag, None))  # GET may not be refused
        if is_schema1(head.media_type):  # not announced, since GET could not serve it
            raise NotFoundError(registry.name, f"has only {Schema1Unsupported()}")
        if head.digest is not None:
            stored = await self._source.lookup(wanted.target, head.digest, head.media_type)
            if stored is not None:  # the bytes are more precise than the response headers
                if stored.media_type != self._source.possible(stored)[0]:
                    await self._source.note_origin(wanted.target, stored)
                return described(stored)
            if head.size and head.media_type in MANIFEST_TYPES:
                return Descriptor(head.media_type, head.digest, head.size)
        return described(await self._source.fetch(wanted, tag, None))

    async def _servable(self, target: Target, link: Link) -> Manifest | None:
        """The stored manifest of a stale link: HEAD must not announce one that GET cannot serve."""
        usable = usable_stale(link.seen, self._clock(), self._stale_if_error)
        if not (usable or link.imported):
            return None
        return await self._source.lookup(target, link.descriptor.digest, link.descriptor.media_type)

    # Both.

    async def _asked(
        self,
        flights: SingleFlight[tuple[Wanted, str], V],
        wanted: Wanted,
        reference: str,
        call: Callable[[], Awaitable[V]],
    ) -> tuple[V, bool]:
        """Send one request for all concurrent callers; remember a refusal for a while."""
        rest = f"{reference} {wanted.narrow}".rstrip()
        question = Question(wanted.target, _KIND, rest, reference)
        await self._refusals.check(question)
        try:
            answer, led = await flights.join((wanted, reference), call)
        except (UpstreamError, FullError) as error:
            await self._refusals.note(question, error)
            raise
        if led:
            await self._refusals.found(question)
        return answer, led


def _is_unconverted(wanted: Wanted, descriptor: Descriptor) -> bool:
    """Whether a client that accepts all types would have got the same from upstream.

    A registry that converts sends a client an image in place of an index, of a type it accepts.
    """
    media_type = descriptor.media_type
    if not wanted.narrow:
        return False  # it is that client
    return media_type in INDEX_TYPES or not accepts(wanted.narrow, media_type)
