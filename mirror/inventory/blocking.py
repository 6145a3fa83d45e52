"""Blocks images: what a target consists of, and changes of the block list.

The results are JSON, which ``--json`` prints unchanged; times are RFC 3339.
"""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any, Final

from mirror.inventory.cache import Cache
from mirror.inventory.listing import rfc3339
from mirror.oci.digest import Digest
from mirror.oci.glob import InvalidGlob
from mirror.oci.image_glob import ImageGlob, Naming
from mirror.policy.blocks import Block, parse_target, spelt_out
from mirror.store.images.catalogue import MANIFEST_KINDS, Catalogue
from mirror.store.metadata.block_file import BlockFile
from mirror.user_error import UserError

_MOST_LEVELS: Final = 4  # an image, its index, and two indexes above that index
_EMPTY_BYTES: Final = 2  # "{}": the configuration that all artifacts without one share

_log = logging.getLogger(__name__)


async def block(
    cache: Cache, file: BlockFile, texts: Sequence[str], reason: str, by: str, now: float
) -> dict[str, Any]:
    """Block digests, images or globs; a further block of the same target replaces the first.

    Raises:
        UserError: a text is neither a digest, nor the name or glob of an image.
        OSError, IndexUnavailableError: the cache cannot be read, or the list not be written.
    """
    targets = {spelt_out(target): target for target in _parsed(texts, cache.naming)}
    reason = " ".join(reason.split())  # a refusal is one line
    added = [
        Block(text, reason, now, by, *await parts_of(cache.catalogue, target))
        for text, target in targets.items()
    ]
    await asyncio.to_thread(
        file.change, lambda former: [*(b for b in former if b.target not in targets), *added]
    )
    for each in added:
        _log.warning("blocked", extra={"target": each.target, "by": by, "reason": reason})
    return listed(added)


async def unblock(file: BlockFile, naming: Naming, texts: Sequence[str], by: str) -> dict[str, Any]:
    """Remove blocks by target.

    Raises:
        UserError: a target is not blocked by a command.
        OSError: the list cannot be read or written.
    """
    targets = {spelt_out(target) for target in _parsed(texts, naming)}
    gone: list[Block] = []

    def without(former: tuple[Block, ...]) -> list[Block]:
        gone.extend(each for each in former if each.target in targets)
        if missing := targets - {each.target for each in gone}:
            raise UserError(f"{min(missing)} is not blocked by a command; see mirror blocks")
        return [each for each in former if each.target not in targets]

    await asyncio.to_thread(file.change, without)
    for each in gone:
        _log.warning("unblocked", extra={"target": each.target, "by": by})
    return listed(gone)


def listed(blocks: Sequence[Block]) -> dict[str, Any]:
    """Return blocks as JSON."""
    return {"blocks": [_told(each) for each in blocks]}


def _told(block: Block) -> Mapping[str, Any]:
    document = {**block.document(), "since": rfc3339(block.since) if block.since else None}
    del document["layers"]
    return document


def _parsed(texts: Sequence[str], naming: Naming) -> list[Digest | ImageGlob]:
    try:
        return [parse_target(text, naming) for text in texts]
    except InvalidGlob as error:
        raise UserError(f"allowed: a digest, or {error}") from error


async def parts_of(
    catalogue: Catalogue, target: Digest | ImageGlob
) -> tuple[frozenset[Digest], frozenset[Digest]]:
    """Return the cached manifests and configurations of a target, and its layers.

    The configurations are blocked too: without them, no client can use the layers it may get.
    """
    if isinstance(target, Digest):
        below = {target}
    else:
        matching = [
            each.digest
            async for page in catalogue.names(target.is_in)
            for each in page
            if target.matches(each.name)
        ]
        below = set(matching)
        for section in catalogue.sections:
            below |= await section.tags.meant(target.matches)
    digests, layers = set(below), set[Digest]()
    for _ in range(_MOST_LEVELS):
        nodes = (await catalogue.nodes(MANIFEST_KINDS, below)).values()
        below = {part.digest for node in nodes for part in node.manifests} - digests
        digests |= below
        for node in nodes:
            digests |= {part.digest for part in node.blobs[:1] if part.size > _EMPTY_BYTES}
            layers |= {part.digest for part in node.blobs[1:]}
    return frozenset(digests), frozenset(layers)
