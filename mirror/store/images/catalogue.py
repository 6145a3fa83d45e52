"""The catalogue of cached images: their names, manifests and blobs.

It reads in pages, so that no pull waits for it, and holds at most one name per manifest in
memory.  It is independent of HTTP and read-only.  All methods raise IndexUnavailableError if the
cache cannot be read.
"""

from collections.abc import (
    AsyncGenerator,
    Callable,
    Collection,
    Container,
    Iterable,
    Mapping,
    Sequence,
)
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import Final, Self, TypeVar

from mirror.oci.digest import Digest
from mirror.oci.image_glob import FullName
from mirror.oci.media_types import DOCKER_LIST, OCI_INDEX
from mirror.store.images.image import CachedImage, Node, Surroundings, assembled, first, read_node
from mirror.store.local.entry import Held
from mirror.store.local.layout import BLOBS, MANIFESTS, PRIVATE_BLOBS, PRIVATE_MANIFESTS, ObjectKey
from mirror.store.local.objects import Objects
from mirror.store.metadata.records import Tags
from mirror.threads import run_in

R = TypeVar("R")

_PAGE: Final = 200
#: Maximum number of parts of the manifests that are read together; it bounds the memory.
_MOST_PARTS: Final = 500_000
_INDEXES: Final = frozenset({OCI_INDEX, DOCKER_LIST})

BLOB_KINDS: Final = (BLOBS, PRIVATE_BLOBS)
MANIFEST_KINDS: Final = (MANIFESTS, PRIVATE_MANIFESTS)
#: For each manifest kind, the kinds of the manifests and blobs that are served with it.
_REACH: Final = {
    MANIFESTS: ((MANIFESTS,), (BLOBS,)),
    PRIVATE_MANIFESTS: (MANIFEST_KINDS, BLOB_KINDS),
}

Places = Callable[[FullName], bool]


@dataclass(frozen=True, slots=True)
class Section:
    """Names, and the kinds of objects that they may lead to, in the order of lookup."""

    tags: Tags
    manifests: tuple[str, ...]
    blobs: tuple[str, ...]

    @classmethod
    def public(cls, tags: Tags) -> Self:
        """The section that every client may read."""
        return cls(tags, (MANIFESTS,), (BLOBS,))

    @classmethod
    def private(cls, tags: Tags) -> Self:
        """The section of the private repositories."""
        return cls(tags, MANIFEST_KINDS, BLOB_KINDS)


@dataclass(frozen=True, slots=True)
class Named:
    """A name and its manifest; ``link`` is the key of the name in ``section.tags``."""

    section: Section
    link: str
    name: FullName
    digest: Digest
    is_index: bool


class Catalogue:
    """The images of a cache directory."""

    def __init__(self, objects: Objects, sections: Sequence[Section], threads: Executor) -> None:
        self.sections = sections
        self._objects = objects
        self._threads = threads

    async def names(self, wanted: Places = lambda _: True) -> AsyncGenerator[list[Named], None]:
        """Yield the names that ``wanted`` accepts, one page at a time."""
        for section in self.sections:
            async for page in section.tags.pages(wanted):
                found = ((link, name, means.descriptor) for link, name, means in page)
                yield [
                    Named(section, link, name, means.digest, means.media_type in _INDEXES)
                    for link, name, means in found
                ]

    async def images(self, places: Places = lambda _: True) -> AsyncGenerator[CachedImage, None]:
        """Yield the images of the repositories that ``places`` accepts, by tag and by digest.

        A digest is omitted if a tag or an index of the same repository leads to it.
        """
        told: set[str] = set()
        for indexes, by_digest in ((None, False), (True, True), (False, True)):

            def here(name: FullName, by_digest: bool = by_digest) -> bool:
                return name.by_digest is by_digest and places(name)

            async for page in self.names(here):
                kind = [each for each in page if indexes in {None, each.is_index}]
                fresh = {_mark(each): each for each in kind if _mark(each) not in told}
                for image in await self.resolved(list(fresh.values())):
                    told |= _marks(image)
                    yield image

    async def nameless(self, named: Container[Digest]) -> AsyncGenerator[CachedImage, None]:
        """Yield the images of the manifests that are not in ``named``."""
        below: set[Digest] = set()
        for indexes in (True, False):
            async for keys in self._manifest_keys():
                digests = [key.digest for key in keys if key.digest not in named]
                nodes = await self.nodes({key.kind for key in keys}, digests)
                roots = [node for node in nodes.values() if node.is_index is indexes]
                new = [node for node in roots if node.key.digest not in below]
                for image in await self._images_of(new):
                    below |= {key.digest for key in image.manifests}
                    yield image

    async def manifests(self) -> AsyncGenerator[Iterable[Node], None]:
        async for keys in self._manifest_keys():
            kinds = {key.kind for key in keys}
            yield (await self.nodes(kinds, [key.digest for key in keys])).values()

    async def _manifest_keys(self) -> AsyncGenerator[list[ObjectKey], None]:
        for kind in MANIFEST_KINDS:
            reached = ""
            while keys := await self._keys_after(kind, reached):
                yield keys
                reached = str(keys[-1])

    async def _keys_after(self, kind: str, name: str) -> list[ObjectKey]:
        return await self._objects.consult(lambda index: index.keys_after(kind, name, _PAGE))

    async def nodes(self, kinds: Iterable[str], digests: Iterable[Digest]) -> dict[ObjectKey, Node]:
        """Return those of the manifests that are stored.

        After _MOST_PARTS parts, the remaining manifests are returned without their parts.
        """
        held = await self._held(kinds, digests)
        return await self._run(lambda: _read_nodes(held))

    async def without_name(self, digests: Iterable[Digest]) -> list[CachedImage]:
        """Return the images of those manifests that are stored, without a name."""
        nodes = await self.nodes(MANIFEST_KINDS, digests)
        return await self._images_of(nodes.values())

    async def _images_of(self, nodes: Collection[Node]) -> list[CachedImage]:
        images: list[CachedImage] = []
        for kind, (manifests, blobs) in _REACH.items():
            roots = [(None, node) for node in nodes if node.key.kind == kind]
            images += await self._built(roots, manifests, blobs)
        return images

    async def resolved(self, page: Sequence[Named]) -> list[CachedImage]:
        """Return the images of those names whose manifest is stored; for one page at most."""
        images: list[CachedImage] = []
        for section in self.sections:
            mine = [each for each in page if each.section is section]
            nodes = await self.nodes(section.manifests, {each.digest for each in mine})
            found = ((each.name, first(nodes, section.manifests, each.digest)) for each in mine)
            roots = [(name, node) for name, node in found if node is not None]
            images += await self._built(roots, section.manifests, section.blobs)
        return images

    async def _built(
        self,
        roots: Sequence[tuple[FullName | None, Node]],
        manifests: Sequence[str],
        blobs: Sequence[str],
    ) -> list[CachedImage]:
        if not roots:
            return []
        nodes = {root.key: root for _, root in roots}
        nodes |= await self.nodes(
            manifests, {part.digest for root in nodes.values() for part in root.manifests}
        )
        held = await self._held(
            blobs, {part.digest for node in nodes.values() for part in node.blobs}
        )
        around = Surroundings(nodes, held, manifests, blobs)

        def made() -> list[CachedImage]:
            platforms = around.platforms()
            images: dict[ObjectKey, CachedImage] = {}
            for name, root in roots:
                if root.key not in images:
                    images[root.key] = assembled(name, root, around, platforms)
            return [replace(images[root.key], name=name) for name, root in roots]

        return await self._run(made)

    async def _held(self, kinds: Iterable[str], digests: Iterable[Digest]) -> dict[ObjectKey, Held]:
        digests = list(digests)
        keys = [ObjectKey(kind, digest) for kind in kinds for digest in digests]
        return await self._objects.consult(lambda index: index.held(keys))

    async def _run(self, function: Callable[[], R]) -> R:
        return await run_in(self._threads, function)


def _read_nodes(held: Mapping[ObjectKey, Held]) -> dict[ObjectKey, Node]:
    nodes, left = {}, _MOST_PARTS
    for key, each in held.items():
        node = read_node(key, each) if left > 0 else Node(key, each)
        if node is not None:
            nodes[key] = node
            left -= len(node.manifests) + len(node.blobs)
    return nodes


def _mark(named: Named) -> str:
    """Return the key under which an image is listed once.

    A tag with two manifests for two kinds of clients is two images.
    """
    name = named.name
    return str(name) if name.by_digest else f"{name}@{named.digest}"


def _marks(image: CachedImage) -> set[str]:
    """Return the keys of :func:`_mark` that an image covers."""
    assert image.name is not None, "callers resolve named images only"
    digests = {f"{image.name.place}@{key.digest}" for key in image.manifests}
    return digests | {f"{image.name}@{image.digest}"}
