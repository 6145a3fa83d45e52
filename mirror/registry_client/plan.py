"""The parts of an image to pull: manifests for the chosen platforms, and their blobs.

Knows the relations of indexes, manifests and blobs.  Must not know how bytes are transferred.
"""

import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

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
