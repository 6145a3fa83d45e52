"""Manifests by digest: from the store, or fetched from upstream, verified and stored."""

import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final, Protocol

from mirror.lru import Lru
from mirror.oci.digest import Digest
from mirror.oci.image_glob import FullName
from mirror.oci.manifest import (
    Descriptor,
    NotAManifest,
    Schema1Unsupported,
    identify,
    media_types,
)
from mirror.oci.media_types import ACCEPT_MANIFESTS
from mirror.oci.reference import Tag
from mirror.pull.outcome import DigestMismatchError, wrong_bytes
from mirror.pull.slots import Room
from mirror.store.interface import (
    IndexUnavailableError,
    Link,
    Manifest,
    ManifestStore,
    NoRoomError,
    PartialBusyError,
    TagStore,
    link_name,
)
from mirror.upstream.endpoints import Endpoints
from mirror.upstream.errors import NonsenseError, NotFoundError
from mirror.upstream.responses import ManifestBody
from mirror.upstream.routing import Target

_log = logging.getLogger(__name__)
_KNOWN_TYPES: Final = 10_000


class Observer(Protocol):
    """Receives the events of manifests."""

    def manifest_mismatched(self, upstream: str) -> None:
        """Upstream sent a manifest that does not match its digest."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """The target and media types of a request.

    ``narrow`` is the client's Accept header if that excludes some types, else empty.
    """

    target: Target
    narrow: str

    @property
    def accept(self) -> str:
        """The Accept header for upstream."""
        return self.narrow or ACCEPT_MANIFESTS

    @property
    def wide(self) -> "Wanted":
        """The same for clients that accept all types."""
        return replace(self, narrow="")

    def name(self, reference: str) -> str:
        """The key of a reference in memory: freshness and refusals."""
        return f"{self.target} {reference} {self.narrow}".rstrip()

    def record(self, tag: Tag) -> str:
        """The key of a tag on disk, the same for all clients."""
        image = FullName(self.target.upstream, self.target.repository, tag)
        return link_name(image, self.narrow)


class ManifestSource:
    """Manifests of the store and of upstreams."""

    def __init__(
        self,
        registries: Mapping[str, Endpoints],
        manifests: ManifestStore,
        tags: TagStore,
        observer: Observer,
        room: Room,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._registries = registries
        self._manifests = manifests
        self._tags = tags
        self._observer = observer
        self._room = room
        self._clock = clock
        self._known_types: Lru[Digest, tuple[str, ...]] = Lru(_KNOWN_TYPES)

    def touch(self, digest: Digest) -> None:
        """Record a use of a manifest."""
        self._manifests.touch(digest)

    def registry(self, target: Target) -> Endpoints:
        """Return the upstream of a target, with the credentials of its principal."""
        return self._registries[target.upstream].with_credentials(target.principal)

    async def lookup(self, target: Target, digest: Digest, said: str = "") -> Manifest | None:
        """Return the stored manifest with the media type of its repository, or None.

        The bytes are the same in all repositories.  The media type may differ if the bytes do not
        state one: it is ``said``, else the one recorded for this repository, if the bytes allow it.
        """
        stored = await self._manifests.of(target.upstream).lookup(digest)
        if stored is None:
            return None
        try:
            possible = self.possible(stored)
        except NotAManifest as error:  # stored by an earlier, less strict version
            _log.debug("the stored manifest %s is not served: %s", digest, error)
            return None
        if len(possible) > 1 and said not in possible:
            link = await self._tags.lookup(link_name(_image(target, digest)))
            said = "" if link is None else link.descriptor.media_type
        media_type = said if said in possible else possible[0]
        # The same object where possible: all readers share one copy of a large manifest in memory.
        same = media_type == stored.media_type
        return stored if same else replace(stored, media_type=media_type)

    def possible(self, manifest: Manifest) -> tuple[str, ...]:
        """The media types that a manifest may have; cached, since parsing 10 KiB takes 50 us."""
        possible = self._known_types.get(manifest.digest)
        if possible is None:
            possible = media_types(manifest.body)
            self._known_types.put(manifest.digest, possible)
        return possible

    async def fetch(self, wanted: Wanted, reference: str, digest: Digest | None) -> Manifest:
        """Fetch, verify and store a manifest.

        Raises:
            UpstreamError: upstream sends no manifest, or not the one with this digest.
        """
        manifest = await self.registry(wanted.target).get_manifest(
            wanted.target.repository,
            reference,
            wanted.accept,
            lambda answer: self._verified(wanted.target, answer, digest),
        )
        # All repositories share the row in the index: it has the media type that the bytes state.
        shared = replace(manifest, media_type=media_types(manifest.body)[0])
        try:
            await self._manifests.of(wanted.target.upstream).put(shared)
        except (OSError, NoRoomError, IndexUnavailableError, PartialBusyError) as error:
            _log.debug("manifest %s is served but could not be stored: %s", manifest.digest, error)
            if isinstance(error, NoRoomError):
                target, size = wanted.target, len(manifest.body)
                self._room.lacking(target.upstream, target.repository, size)
        else:
            await self.note_origin(wanted.target, manifest)
        return manifest

    def _verified(self, target: Target, answer: ManifestBody, digest: Digest | None) -> Manifest:
        """Return the manifest in an answer of upstream.

        Raises:
            UpstreamError: the body is not a manifest, or does not match the digest.
        """
        upstream = target.upstream
        expected = digest or answer.digest or Digest.of(answer.body)
        if Digest.of(answer.body, expected.algorithm) != expected:
            self._observer.manifest_mismatched(upstream)
            error = DigestMismatchError(upstream, wrong_bytes(target.repository, expected))
            self.registry(target).log.mismatched(expected, error)
            raise error
        try:
            media_type = identify(answer.body, answer.media_type)
        except Schema1Unsupported as reason:
            raise NotFoundError(upstream, f"has only {reason}") from reason
        except NotAManifest as reason:
            raise NonsenseError(upstream, f"did not send a manifest: {reason}") from reason
        return Manifest(expected, media_type, answer.body, answer.hold)

    async def note_origin(self, target: Target, manifest: Manifest) -> None:
        """Record the repository of a manifest, for listings of the cache."""
        link = Link(described(manifest), self._clock())
        name = link_name(_image(target, manifest.digest))
        await self.write_down(self._tags.put(name, link))

    async def write_down(self, writing: Awaitable[None]) -> None:
        """Write a link; a failed write is logged."""
        try:
            await writing
        except IndexUnavailableError as error:
            _log.debug("a tag could not be written down: %s", error)


def _image(target: Target, digest: Digest) -> FullName:
    """The full name of a manifest by digest."""
    return FullName(target.upstream, target.repository, str(digest))


def described(manifest: Manifest) -> Descriptor:
    """Return the descriptor of a manifest."""
    return Descriptor(manifest.media_type, manifest.digest, len(manifest.body))
