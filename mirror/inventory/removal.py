"""Removal of images from a cache, also as a dry run.

The result is JSON, which ``mirror rm --json`` prints unchanged.  Sizes are bytes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mirror.inventory.cache import Cache
from mirror.inventory.listing import parse_glob
from mirror.oci.digest import Digest, InvalidDigest
from mirror.oci.glob import is_glob
from mirror.oci.image_glob import FullName, ImageGlob
from mirror.store.images.catalogue import BLOB_KINDS, Named
from mirror.store.images.removal import Removal, carry_out, planned
from mirror.store.local.layout import MANIFESTS, ObjectKey
from mirror.user_error import UserError


@dataclass(slots=True)
class _Target:
    """An argument of ``mirror rm``: a digest or a glob; ``met`` once a name has matched."""

    text: str
    digest: Digest | None
    glob: ImageGlob | None
    met: bool = False

    def means(self, named: Named) -> bool:
        """Return True if the target matches a name."""
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
    text = f"{target.text} is not cached" if exact is None else f"{exact} is not cached"
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
