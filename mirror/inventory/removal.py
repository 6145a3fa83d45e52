"""Removal of images: their names, and the objects that no remaining image uses.

Planning is separate from execution, so that a dry run can show the plan.  The result is JSON, which
``mirror rm --json`` prints unchanged.  Sizes are bytes.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from mirror.inventory.cache import Cache
from mirror.inventory.listing import parse_glob
from mirror.oci.digest import Digest, InvalidDigest
from mirror.oci.image_glob import FullName, ImageGlob, is_glob
from mirror.store.images.catalogue import (
    BLOB_KINDS,
    MANIFEST_KINDS,
    Catalogue,
    Named,
)
from mirror.store.images.image import CachedImage, Node
from mirror.store.local.layout import MANIFESTS, ObjectKey
from mirror.store.local.objects import Objects
from mirror.user_error import UserError

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


@dataclass(slots=True)
class _Target:
    """An argument of ``mirror rm``: a digest or a glob; ``met`` once a name has matched."""

    text: str
    digest: Digest | None
    glob: ImageGlob | None
    met: bool = False

    def means(self, named: Named) -> bool:
        if self.glob is None:
            meant = named.digest == self.digest
        else:
            meant = self.glob.matches(named.name)
            if self.glob.by_digest:  # a tag matches by its digest
                name = FullName(named.name.registry, named.name.repository, str(named.digest))
                meant = self.glob.matches(name)
        self.met = self.met or meant
        return meant


async def removal(
    cache: Cache, texts: Sequence[str], *, dry_run: bool = False, force: bool = False
) -> dict[str, Any]:
    """Remove images by name, glob or digest; kept images only with ``force``.

    Also from the object store of a cluster, from which the cache would get them again.

    Raises:
        UserError: a text matches no cached image, or a kept image without ``force``; or the object
            store fails.
        IndexUnavailableError, OSError: the cache cannot be used.
    """
    targets = [_target(text, cache) for text in texts]
    digests = [target.digest for target in targets if target.digest is not None]

    def dropped(named: Named) -> bool:
        # No short circuit with any(): each target sets `met`.
        return sum(target.means(named) for target in targets) > 0

    plan = await planned(cache.catalogue, dropped, digests)
    plan.objects |= await _blobs(cache, digests)
    found = {image.digest for image in plan.images} | {key.digest for key in plan.objects}
    for target in targets:
        if not target.met and target.digest not in found:
            raise UserError(await _unknown(target, cache))
    if not force:
        await _refuse_kept(plan, cache)
    if not dry_run:
        await _remove_shared(plan, cache)
        await carry_out(plan, cache.objects)
    return _told(plan, dry_run=dry_run)


def _target(text: str, cache: Cache) -> _Target:
    try:
        return _Target(text, Digest.parse(text), None)
    except InvalidDigest:
        tag = "*" if is_glob(text) else "latest"  # the default tag, as in Docker
        return _Target(text, None, parse_glob(text, cache.naming, tag))


async def _blobs(cache: Cache, digests: Sequence[Digest]) -> dict[ObjectKey, int]:
    keys = [ObjectKey(kind, digest) for kind in BLOB_KINDS for digest in digests]
    held = await cache.objects.consult(lambda index: index.held(keys))
    return {key: each.size for key, each in held.items()}


async def _remove_shared(plan: Removal, cache: Cache) -> None:
    if not cache.cluster.objects:
        return
    from mirror.cluster import check_installed  # noqa: PLC0415  # only for a cluster

    check_installed()
    from mirror.cluster.upkeep import remove  # noqa: PLC0415  # an extra that few install

    links = [each.link for each in plan.names if each.section.manifests == (MANIFESTS,)]
    keys = [key for key in plan.objects if key.private_twin is not None]
    await remove(cache.cluster, keys, links)


async def _refuse_kept(plan: Removal, cache: Cache) -> None:
    """Refuse a plan with kept images or objects.

    Raises:
        UserError: the plan contains one.
    """
    kept = named = [str(each.name) for each in plan.names if cache.keeps(each.name)]
    if not named:
        marked = await cache.objects.consult(lambda index: index.kept.among(list(plan.objects)))
        kept = [str(key.digest) for key in marked]
    if kept:
        more = f" and {len(kept) - 1} more" if len(kept) > 1 else ""
        if min(kept) in cache.chosen:
            where, instead = "on the status page", "release it there, or --force drops it anyway"
        else:
            where, instead = "by [[keep]] in the configuration", "--force drops it anyway"
            if not named:
                where = "as content of an image of [[keep]] or [[pin]], or of a held tag"
        raise UserError(f"{min(kept)}{more}: kept {where}; {instead}")


async def _unknown(target: _Target, cache: Cache) -> str:
    """Return the message for a target without a match, with tags that the repository has."""
    if target.glob is None:
        return f"{target.text} is not cached"
    exact = target.glob.exact
    text = f"{exact or target.text} is not cached"
    beside = [
        str(each.name)
        async for page in cache.catalogue.names()
        for each in page
        if exact is not None and each.name.place == exact.place and not each.name.by_digest
    ]
    return f"{text}; there is {', '.join(sorted(beside)[:5])}" if beside else text


def _told(plan: Removal, *, dry_run: bool) -> dict[str, Any]:
    return {
        "dry_run": dry_run,
        "images": sorted(
            (
                {"name": str(image), "digest": str(image.digest), "bytes": image.size}
                for image in plan.images
            ),
            key=lambda each: str(each["name"]),
        ),
        "objects": [
            {"kind": key.kind, "digest": str(key.digest), "bytes": size}
            for key, size in plan.objects.items()
        ],
        "links": [each.link for each in plan.names],
        "bytes": plan.bytes,
    }
