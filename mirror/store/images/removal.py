"""Removal of images: their names, and the objects that no remaining image uses.

Planning is separate from execution, so that a dry run can show the plan.
"""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import Final

from mirror.oci.digest import Digest
from mirror.store.images.catalogue import (
    BLOB_KINDS,
    MANIFEST_KINDS,
    Catalogue,
    Named,
)
from mirror.store.images.image import CachedImage, Node
from mirror.store.local.layout import ObjectKey
from mirror.store.local.objects import Objects

_PAGE: Final = 200


@dataclass(slots=True)
class Removal:
    """The plan: ``images`` to remove, with their ``names`` and ``objects``.

    ``objects`` are the manifests and blobs to remove, with their sizes in bytes.
    """

    images: list[CachedImage] = field(default_factory=list)
    names: list[Named] = field(default_factory=list)
    objects: dict[ObjectKey, int] = field(default_factory=dict)

    @property
    def bytes(self) -> int:
        """The total size of the objects to remove, in bytes."""
        return sum(self.objects.values())


async def planned(
    catalogue: Catalogue, dropped: Callable[[Named], bool], digests: Collection[Digest]
) -> Removal:
    """Plan the removal of the names that ``dropped`` selects, and of manifests by digest.

    Raises:
        IndexUnavailableError: the cache cannot be read.
    """
    removal = Removal()
    removal.names = [each async for page in catalogue.names() for each in page if dropped(each)]
    for start in range(0, len(removal.names), _PAGE):
        removal.images += await catalogue.resolved(removal.names[start : start + _PAGE])
    found = {image.digest for image in removal.images}
    removal.images += await catalogue.without_name(set(digests) - found)
    for image in removal.images:
        removal.objects |= image.objects
    going = {key.digest for key in removal.objects if key.is_manifest} - set(digests)
    spared = _Spared(removal, await catalogue.nodes(MANIFEST_KINDS, going))
    await _look_at_names(removal, catalogue, spared)
    async for nodes in catalogue.manifests():
        spared.keep_parts_of(nodes)
    return removal


async def carry_out(removal: Removal, objects: Objects) -> None:
    """Execute a removal, names first, so that no name leads to a removed object.

    Raises:
        IndexUnavailableError, OSError: the removal is incomplete.
    """
    for each in removal.names:
        await each.section.tags.forget(each.link)
    for key in sorted(removal.objects, key=lambda key: not key.is_manifest):
        await objects.forget(key)


async def _look_at_names(removal: Removal, catalogue: Catalogue, spared: "_Spared") -> None:
    """Spare manifests with another name; remove digest names together with their tag."""
    dropped = {(each.section.manifests, each.link) for each in removal.names}
    going = {key.digest for key in removal.objects if key.is_manifest}
    with_tag = {
        f"{image.name.place}@{key.digest}"
        for image in removal.images
        if image.name is not None
        for key in image.manifests
    }
    async for page in catalogue.names():
        for each in page:
            if each.digest not in going or (each.section.manifests, each.link) in dropped:
                continue
            if each.name.by_digest and str(each.name) in with_tag:
                removal.names.append(each)
            else:
                spared.keep(each.digest)


class _Spared:
    """Excludes the objects that are still in use from a removal."""

    def __init__(self, removal: Removal, nodes: dict[ObjectKey, Node]) -> None:
        """``nodes`` are the manifests to remove unless they are still in use."""
        self._removal = removal
        self._nodes = {key: node for key, node in nodes.items() if key in removal.objects}
        self._going = {key for key in removal.objects if key.is_manifest}

    def keep(self, digest: Digest) -> None:
        """Spare a manifest and all its parts."""
        self.keep_parts_of(self._taken_out(digest))

    def keep_parts_of(self, nodes: Iterable[Node]) -> None:
        """Spare the parts of the manifests that stay."""
        staying = [node for node in nodes if node.key not in self._going]
        while staying:  # no recursion: indexes may be nested a thousand times
            node = staying.pop()
            for part in node.manifests:
                staying += self._taken_out(part.digest)
            for part in node.blobs:
                for kind in BLOB_KINDS:
                    self._removal.objects.pop(ObjectKey(kind, part.digest), None)

    def _taken_out(self, digest: Digest) -> list[Node]:
        """Exclude a manifest from the removal; return the nodes that were still in it."""
        taken = []
        for kind in MANIFEST_KINDS:
            node = self._nodes.pop(ObjectKey(kind, digest), None)
            if node is not None:
                self._removal.objects.pop(node.key)
                self._going.discard(node.key)
                taken.append(node)
        return taken
