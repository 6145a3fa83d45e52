"""Keeps images that a rule names against eviction: manifests and blobs, there or still to come.

What a name leads to is marked when the name is written down and when a manifest is stored, in
whatever process; a review of all names lets go what no rule leads to any more.
"""

import logging
import time
from collections.abc import Awaitable, Callable, Collection, Iterable
from typing import Final

from mirror.oci.digest import Digest
from mirror.oci.image_glob import FullName
from mirror.store.images.catalogue import Catalogue, Section
from mirror.store.images.manifest_graph import Node
from mirror.store.local.kept import Kept
from mirror.store.local.layout import ObjectKey
from mirror.store.local.manifests import Manifests
from mirror.store.local.objects import Objects
from mirror.store.local.sqlite import IndexUnavailableError

_BATCH: Final = 500
_MOST_LEVELS: Final = 4  # an image, an index, and two indexes above it

_log = logging.getLogger(__name__)

Rule = Callable[[FullName], bool]


def nothing(_: FullName) -> bool:
    """The rule that keeps nothing."""
    return False


class KeptImages:
    """The kept images of one cache; ``rule`` says which they are."""

    def __init__(
        self, objects: Objects, catalogue: Catalogue, clock: Callable[[], float] = time.time
    ) -> None:
        self.rule: Rule = nothing
        self._objects = objects
        self._catalogue = catalogue
        self._clock = clock
        self._settled: tuple[Rule, Kept] | None = None
        self._begun = 0.0  # of the last review: what it keeps is never older, if the clock is set

    def watch(self, section: Section, manifests: Manifests) -> None:
        """Hear of what is written down and stored in a section."""
        section.tags.watch(lambda image, digest: self.noted(section, image, digest))
        manifests.watch(lambda key: self.stored(section, key))

    async def noted(self, section: Section, image: FullName, digest: Digest) -> None:
        """A name was written down."""
        if self.rule(image):
            await self._quietly(self._keep(section, [digest]))

    async def stored(self, section: Section, key: ObjectKey) -> None:
        """A manifest was stored."""
        if self.rule is not nothing:
            await self._quietly(self._follow(section, key))

    async def review(self) -> int:
        """Go through all names; keep what the rule says, and nothing else.

        Returns:
            the bytes that are kept and there.

        Raises:
            IndexUnavailableError: the index cannot be used.
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
        """Whether all has been reviewed under this rule, and in this index: one may be lost.

        Raises:
            IndexUnavailableError: there is no index at the moment.
        """
        kept = await self._objects.consult(lambda index: index.kept)
        return self._settled == (self.rule, kept)

    async def _follow(self, section: Section, key: ObjectKey) -> None:
        if await self._objects.consult(lambda index: index.kept.among([key])):
            await self._keep(section, [key.digest])

    async def _keep(self, section: Section, digests: Iterable[Digest]) -> None:
        """Keep manifests, and what they are made of as far as that is known."""
        digests = set(digests)
        seen = set(digests)
        for _ in range(_MOST_LEVELS):
            nodes = (await self._catalogue.nodes(section.manifests, digests)).values()
            await self._put(_keys(section.manifests, digests))
            blobs = {part.digest for node in nodes for part in node.blobs}
            await self._put(_keys(section.blobs, blobs))
            digests = _below(nodes) - seen
            seen |= digests

    async def _put(self, keys: list[ObjectKey]) -> None:
        for start in range(0, len(keys), _BATCH):
            some, now = keys[start : start + _BATCH], max(self._clock(), self._begun)
            await self._objects.consult(lambda index, some=some, now=now: index.kept.put(some, now))  # type: ignore[misc]

    async def _quietly(self, keeping: Awaitable[None]) -> None:
        """No pull fails because something cannot be marked; the next review tries again."""
        try:
            await keeping
        except IndexUnavailableError as error:
            _log.debug("keeping: %s", error)


def _keys(kinds: Iterable[str], digests: Collection[Digest]) -> list[ObjectKey]:
    return [ObjectKey(kind, digest) for kind in kinds for digest in digests]


def _below(nodes: Collection[Node]) -> set[Digest]:
    return {part.digest for node in nodes for part in node.manifests}
