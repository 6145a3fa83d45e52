"""Protects images that match a ``[[keep]]`` rule from eviction: manifests and blobs.

Objects are marked as kept when a name is written and when a manifest is stored, in any process,
even before the objects are stored.  A review of all names releases the objects that no rule
covers any more.  All methods but ``noted`` and ``stored`` raise IndexUnavailableError if the index
cannot be used.
"""

import logging
import time
from collections.abc import Awaitable, Callable, Collection, Iterable
from typing import Final

from mirror.oci.digest import Digest
from mirror.oci.image_glob import FullName
from mirror.store.images.catalogue import Catalogue, Section
from mirror.store.interface import IndexUnavailableError
from mirror.store.local.content import Manifests
from mirror.store.local.kept import Kept
from mirror.store.local.layout import ObjectKey
from mirror.store.local.objects import Objects

_BATCH: Final = 500
_MOST_LEVELS: Final = 4  # an image, its index, and two indexes above that index

_log = logging.getLogger(__name__)

Rule = Callable[[FullName], bool]


def nothing(_: FullName) -> bool:
    return False


class KeptImages:
    """The kept images of one cache; ``rule`` selects them."""

    def __init__(
        self, objects: Objects, catalogue: Catalogue, clock: Callable[[], float] = time.time
    ) -> None:
        self.rule: Rule = nothing
        self.meant: set[FullName] = set()  # held digests, at the time of the last review
        self._objects = objects
        self._catalogue = catalogue
        self._clock = clock
        self._settled: tuple[Rule, Kept] | None = None
        # The start of the last review.  Marks are never older, even if the clock is set back.
        self._begun = 0.0

    def watch(self, section: Section, manifests: Manifests) -> None:
        """Subscribe to the names and manifests that are written in a section."""
        section.tags.watch(lambda image, digest: self.noted(section, image, digest))
        manifests.watch(lambda key: self.stored(section, key))

    async def noted(self, section: Section, image: FullName, digest: Digest) -> None:
        """Mark the objects of a name that was written."""
        if self.rule(image):
            await self._quietly(self._keep(section, [digest]))

    async def keep_meant(self, image: FullName) -> None:
        """Mark the objects of a digest that a tag means here, although it moved upstream."""
        digests = [Digest.parse(image.reference)]
        for section in self._catalogue.sections:
            await self._quietly(self._keep(section, digests))

    async def stored(self, section: Section, key: ObjectKey) -> None:
        """Mark the parts of a manifest that was stored."""
        if self.rule is not nothing:
            await self._quietly(self._follow(section, key))

    async def review(self) -> int:
        """Go through all names; mark the objects that the rule covers and release all others.

        Returns:
            the stored bytes that are kept.
        """
        await self._objects.rebuilt()
        begun, rule = self._clock(), self.rule
        self._begun = begun
        kept = await self._objects.consult(lambda index: index.kept)
        if self.rule is not nothing:
            async for page in self._catalogue.names(self.rule):
                for section in self._catalogue.sections:
                    digests = {each.digest for each in page if each.section is section}
                    await self._keep(section, digests)
        while await self._objects.consult(lambda index: index.kept.release(begun, _BATCH)):
            pass
        self._settled = (rule, kept)
        return await self._objects.consult(lambda index: index.kept.bytes())

    async def is_settled(self) -> bool:
        """Return True if a review with this rule has finished in this index.

        The index may have been lost and replaced since the last review.
        """
        kept = await self._objects.consult(lambda index: index.kept)
        return self._settled == (self.rule, kept)

    async def _follow(self, section: Section, key: ObjectKey) -> None:
        if await self._objects.consult(lambda index: index.kept.among([key])):
            await self._keep(section, [key.digest])

    async def _keep(self, section: Section, digests: Iterable[Digest]) -> None:
        """Mark manifests, and those of their parts that stored manifests name."""
        digests = set(digests)
        seen = set(digests)
        for _ in range(_MOST_LEVELS):
            nodes = (await self._catalogue.nodes(section.manifests, digests)).values()
            await self._put(_keys(section.manifests, digests))
            blobs = {part.digest for node in nodes for part in node.blobs}
            await self._put(_keys(section.blobs, blobs))
            digests = {part.digest for node in nodes for part in node.manifests} - seen
            seen |= digests

    async def _put(self, keys: list[ObjectKey]) -> None:
        for start in range(0, len(keys), _BATCH):
            some, now = keys[start : start + _BATCH], max(self._clock(), self._begun)
            await self._objects.consult(lambda index, some=some, now=now: index.kept.put(some, now))  # type: ignore[misc]

    async def _quietly(self, keeping: Awaitable[None]) -> None:
        """Ignore a failure to mark, so that no pull fails; the next review tries again."""
        try:
            await keeping
        except IndexUnavailableError as error:
            _log.debug("keeping: %s", error)


def _keys(kinds: Iterable[str], digests: Collection[Digest]) -> list[ObjectKey]:
    return [ObjectKey(kind, digest) for kind in kinds for digest in digests]
