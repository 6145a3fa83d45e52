"""Plans images, and pulls them into a cache: a limited number of blobs at once, each blob once.

A plan has the manifests for the chosen platforms, and their blobs.

A failed image does not stop the others.  Cached blobs are checked, and not transferred.  If the
task is cancelled, the cache keeps the bytes that have arrived.
"""

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Final, Protocol

from mirror.oci.digest import Digest
from mirror.oci.image_name import joined
from mirror.oci.manifest import (
    Descriptor,
    IndexEntry,
    NotAManifest,
    index_entries,
    references,
)
from mirror.oci.media_types import DOCKER_LIST, OCI_INDEX
from mirror.oci.platform import NoSuchPlatform, Platform, choose
from mirror.oci.reference import Reference
from mirror.registry_client.client import (
    BrokenOffError,
    MirrorClient,
    Place,
    PulledManifest,
    PullError,
    attached_tag,
)

_INDEXES: Final = frozenset({OCI_INDEX, DOCKER_LIST})
_CONFIGS: Final = frozenset(
    {
        "application/vnd.oci.image.config.v1+json",
        "application/vnd.docker.container.image.v1+json",
    }
)
MAX_DEPTH: Final = 3  # an index in an index is rare; a third level has never been seen
#: References in all manifests of an image together: processing them takes some seconds.
MAX_REFERENCES: Final = 200_000
_MAX_MANIFESTS: Final = 10_000
_MAX_ATTACHED: Final = 100  # to all manifests of an image together
#: Suffixes of the tags at which cosign looks for signatures and attestations.
_COSIGN_KINDS: Final = (".sig", ".att")
#: The manifest that an attestation of BuildKit is about.
_ATTESTED: Final = "vnd.docker.reference.digest"

#: Select everything in an index, including attestations.
EVERYTHING: Final[tuple[Platform, ...]] = ()


@dataclass(frozen=True, slots=True)
class Wanted:
    """An image; ``typed`` is its name as the user wrote it."""

    typed: str
    place: Place
    reference: Reference

    @property
    def full_name(self) -> str:
        """The complete name, with registry and reference."""
        return joined(str(self.place), self.reference)


@dataclass(slots=True)
class Plan:
    """The content to pull; ``stale``: upstream could not confirm the tag.

    ``references`` counts all references in the manifests, repeated ones too.
    """

    wanted: Wanted
    root: Descriptor
    stale: bool
    manifests: dict[Digest, PulledManifest] = field(default_factory=dict)
    blobs: dict[Digest, Descriptor] = field(default_factory=dict)
    references: int = 0

    @property
    def blob_bytes(self) -> int:
        """Total size of the blobs in bytes."""
        return sum(blob.size for blob in self.blobs.values())

    def runnable(self) -> bytes | None:
        """The manifest of the first image that Docker can run, None if there is none."""
        for pulled in self.manifests.values():
            parts = () if is_index(pulled.media_type) else references(pulled.body)
            if parts and parts[0].media_type in _CONFIGS and not _is_attestation(parts):
                return pulled.body
        return None


async def planned(client: MirrorClient, wanted: Wanted, platforms: Iterable[Platform]) -> Plan:
    """Pull the manifests of an image, and collect its blobs.

    Args:
        client: the mirror.
        wanted: the image.
        platforms: platforms to select from an index; :data:`EVERYTHING` for all.

    Raises:
        PullError: the image is not available, or lacks one of the platforms.
    """
    pulled = await client.manifest(wanted.place, wanted.reference)
    root = Descriptor(pulled.media_type, pulled.digest, len(pulled.body))
    plan = Plan(wanted, root, pulled.stale)
    try:
        await _include(plan, client, pulled, tuple(platforms), MAX_DEPTH)
    except (NotAManifest, NoSuchPlatform) as error:
        raise PullError(f"{wanted.full_name}: {error}") from error
    return plan


async def attach(client: MirrorClient, plan: Plan) -> None:
    """Add signatures, attestations and the like to a plan, as far as they are available.

    Clients ask for them at each pull, and some fail if the mirror does not know whether there are
    any while upstream cannot answer.
    """
    place, left, digests = plan.wanted.place, _MAX_ATTACHED, [*plan.manifests]
    found: list[Reference] = [attached_tag(plan.root.digest, kind) for kind in _COSIGN_KINDS]
    for digest in digests:  # grows: a signature may be attached to an SBOM
        with contextlib.suppress(PullError, NotAManifest):
            found += [each.descriptor.digest for each in await client.attached(place, digest)]
        while found and left:
            left -= 1
            with contextlib.suppress(PullError, NotAManifest):
                pulled = await client.manifest(place, found.pop())
                if pulled.digest not in plan.manifests:
                    digests.append(pulled.digest)
                    await _include(plan, client, pulled, EVERYTHING, 1)


async def _include(
    plan: Plan,
    client: MirrorClient,
    pulled: PulledManifest,
    platforms: tuple[Platform, ...],
    depth: int,
) -> None:
    plan.manifests[pulled.digest] = pulled
    if pulled.media_type not in _INDEXES:
        blobs = blobs_of(pulled.body)
        plan.blobs |= blobs
        _count(plan, len(blobs))
        return
    if depth == 0:
        raise NotAManifest("indexes are nested too deeply")
    entries = index_entries(pulled.body)
    _count(plan, len(entries))
    for entry in _chosen(entries, platforms) if platforms else entries:
        digest = entry.descriptor.digest
        if digest not in plan.manifests:
            below = await client.manifest(plan.wanted.place, digest)
            await _include(plan, client, below, platforms, depth - 1)


def _chosen(entries: Sequence[IndexEntry], platforms: tuple[Platform, ...]) -> list[IndexEntry]:
    """The entries for some platforms, and their attestations, which Docker pulls with them."""
    chosen = choose(entries, platforms)
    digests = {str(entry.descriptor.digest) for entry in chosen}
    return chosen + [each for each in entries if each.annotations.get(_ATTESTED) in digests]


def _count(plan: Plan, references: int) -> None:
    plan.references += references
    if plan.references > MAX_REFERENCES or len(plan.manifests) > _MAX_MANIFESTS:
        raise NotAManifest(f"more than {_MAX_MANIFESTS} manifests, or {MAX_REFERENCES} references")


def blobs_of(manifest: bytes) -> Mapping[Digest, Descriptor]:
    """The config and layers of an image, without layers that registries do not serve.

    Raises:
        NotAManifest: ``manifest`` is not a manifest.
    """
    return {
        descriptor.digest: descriptor
        for descriptor in references(manifest)
        if not descriptor.is_foreign
    }


def is_index(media_type: str) -> bool:
    """Whether ``media_type`` is the type of an index."""
    return media_type in _INDEXES


def _is_attestation(parts: Iterable[Descriptor]) -> bool:
    """Whether it is an attestation of BuildKit, which has the config type of an image."""
    return any("in-toto" in part.media_type for part in parts)


_PLANNING: Final = 8
_MAX_FRUITLESS: Final = 3

#: Number of bytes of a blob on disk from an earlier, incomplete download.
LeftOf = Callable[[Digest], int]


class Watcher(Protocol):
    """Receives progress; sizes in bytes."""

    def expected(self, images: int) -> None:
        """The number of images is known."""

    def planned(self, wanted: Wanted, size: int) -> None:
        """The size of an image is known."""

    def began(self, wanted: Wanted) -> None:
        """The pull of an image begins."""

    def came(self, wanted: Wanted, size: int, *, fetched: bool) -> None:
        """``size`` more bytes are in the cache: fetched from upstream, or found there."""

    def ended(self, pulled: "Pulled") -> None:
        """The image is complete, or has failed."""


@dataclass(frozen=True, slots=True)
class Pulled:
    """The result for one image; sizes in bytes, ``reason`` is empty if it succeeded."""

    wanted: Wanted
    plan: Plan | None
    fetched: int
    found: int
    reason: str = ""


@dataclass(slots=True)
class _Tally:
    """Bytes of one image so far."""

    wanted: Wanted
    watcher: Watcher
    fetched: int = 0
    found: int = 0

    def add(self, *, found: int, fetched: int = 0) -> None:
        self.found += found
        self.fetched += fetched
        if found:
            self.watcher.came(self.wanted, found, fetched=False)
        if fetched:
            self.watcher.came(self.wanted, fetched, fetched=True)


class Puller:
    """Pulls images through one mirror."""

    def __init__(
        self,
        client: MirrorClient,
        left_of: LeftOf,
        watcher: Watcher,
        parallel: int,
        *,
        attached: bool,
    ) -> None:
        """Pull at most ``parallel`` images, and as many blobs, at once.

        ``attached``: pull what is attached to the images too.
        """
        self._attached = attached
        self._client = client
        self._left_of = left_of
        self._watcher = watcher
        self._planning = asyncio.Semaphore(_PLANNING)
        self._images = asyncio.Semaphore(parallel)
        self._blobs = asyncio.Semaphore(parallel)
        self._locks: defaultdict[Digest, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def pull(self, images: Sequence[Wanted], platforms: Sequence[Platform]) -> list[Pulled]:
        """Pull images, for the named platforms, or for all if none is named.

        Returns:
            the results, in the order of the images.
        """
        self._watcher.expected(len(images))
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._image(image, platforms)) for image in images]
        return [task.result() for task in tasks]

    async def _image(self, wanted: Wanted, platforms: Sequence[Platform]) -> Pulled:
        plan, tally, reason = None, _Tally(wanted, self._watcher), ""
        try:
            async with self._planning:
                plan = await planned(self._client, wanted, platforms)
                if self._attached:
                    await attach(self._client, plan)
            self._watcher.planned(wanted, plan.blob_bytes)
            async with self._images:
                self._watcher.began(wanted)
                await self._all_blobs(plan, tally)
        except PullError as error:
            reason = str(error)
        pulled = Pulled(wanted, plan, tally.fetched, tally.found, reason)
        self._watcher.ended(pulled)
        return pulled

    async def _all_blobs(self, plan: Plan, tally: _Tally) -> None:
        """Pull every blob to its end even if others fail, so that the next run finds it."""
        work = (self._blob(plan.wanted.place, blob, tally) for blob in plan.blobs.values())
        for ended in await asyncio.gather(*work, return_exceptions=True):
            if isinstance(ended, BaseException):
                raise ended

    async def _blob(self, place: Place, blob: Descriptor, tally: _Tally) -> None:
        async with self._locks[blob.digest], self._blobs:
            left = self._left_of(blob.digest)
            if await self._client.holds(place, blob.digest):
                tally.add(found=blob.size)
                return
            size = await self._download(place, blob.digest, left, tally)
            if size != blob.size:
                raise PullError(f"{blob.digest} has {size} bytes, not {blob.size} as declared")
            if not await self._client.is_stored(place, blob.digest):
                raise PullError(
                    f"{blob.digest} could not be stored: check max_size, min_free and the disk"
                )

    async def _download(self, place: Place, digest: Digest, left: int, tally: _Tally) -> int:
        """Read a blob and drop the bytes; ``left`` of them came with an earlier download."""
        reached = fruitless = 0
        while True:
            before, position = reached, 0
            try:
                async with aclosing(self._client.blob(place, digest)) as pieces:
                    async for piece in pieces:
                        position += len(piece)
                        if position > reached:
                            found = max(0, min(position, left) - reached)
                            tally.add(found=found, fetched=position - reached - found)
                            reached = position
                return reached
            except BrokenOffError as error:
                fruitless = 0 if reached > before else fruitless + 1
                if fruitless >= _MAX_FRUITLESS:
                    raise PullError(
                        f"{error}, {fruitless} times: upstream fails or sends wrong bytes; "
                        "see the mirror's log"
                    ) from error
