"""Which images are cached: their names, and the manifests and blobs that belong to each.

Reads in pages, so that no pull waits for it, and keeps no more than a name per manifest.  Knows
no HTTP.  Must not change anything.
"""

import asyncio
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
from dataclasses import dataclass, field
from typing import Final, Self, TypeVar

from mirror.oci.digest import Digest
from mirror.oci.image_glob import FullName
from mirror.oci.media_types import DOCKER_LIST, OCI_INDEX
from mirror.store.anatomy import Node, platform_of, read_node
from mirror.store.index import Held
from mirror.store.layout import (
    BLOBS,
    MANIFESTS,
    PRIVATE_BLOBS,
    PRIVATE_MANIFESTS,
    ObjectKey,
)
from mirror.store.objects import Objects
from mirror.store.tags import Tags

R = TypeVar("R")

_PAGE: Final = 200
_INDEXES: Final = frozenset({OCI_INDEX, DOCKER_LIST})
_UNKNOWN: Final = "unknown/unknown"  # what an attestation says it runs on

BLOB_KINDS: Final = (BLOBS, PRIVATE_BLOBS)
MANIFEST_KINDS: Final = (MANIFESTS, PRIVATE_MANIFESTS)
#: By the kind of a manifest those of the manifests and blobs that are given out with it.
_REACH: Final = {
    MANIFESTS: ((MANIFESTS,), (BLOBS,)),
    PRIVATE_MANIFESTS: (MANIFEST_KINDS, BLOB_KINDS),
}

Places = Callable[[FullName], bool]


@dataclass(frozen=True, slots=True)
class Section:
    """Names, and the kinds of objects that are given out by them, in the order they are tried."""

    tags: Tags
    manifests: tuple[str, ...]
    blobs: tuple[str, ...]

    @classmethod
    def public(cls, tags: Tags) -> Self:
        """What everybody may have."""
        return cls(tags, (MANIFESTS,), (BLOBS,))

    @classmethod
    def private(cls, tags: Tags) -> Self:
        """What private repositories have."""
        return cls(tags, MANIFEST_KINDS, BLOB_KINDS)


@dataclass(frozen=True, slots=True)
class Named:
    """A name, and the manifest it means; ``link`` is the name as its section has it."""

    section: Section
    link: str
    name: FullName
    digest: Digest
    is_index: bool


@dataclass(frozen=True, slots=True)
class CachedPlatform:
    """One manifest of an image, with its blobs; sizes in bytes, of what is there and is not."""

    platform: str
    digest: Digest
    size: int
    missing: int


@dataclass(slots=True)
class CachedImage:
    """An image of which at least a manifest is there.

    ``name`` is None where nobody knows it.  ``objects`` are those of it that are there, with their
    sizes in bytes; ``used`` is when it was last pulled (Unix seconds).
    """

    name: FullName | None
    key: ObjectKey
    media_type: str
    used: float
    platforms: list[CachedPlatform] = field(default_factory=list)
    objects: dict[ObjectKey, int] = field(default_factory=dict)

    def __str__(self) -> str:
        return str(self.name or self.digest)

    @property
    def digest(self) -> Digest:
        """Of the manifest that the name means."""
        return self.key.digest

    @property
    def private(self) -> bool:
        """Whether it is there only for clients who have been let in upstream."""
        return self.key.kind == PRIVATE_MANIFESTS

    @property
    def manifests(self) -> Iterable[ObjectKey]:
        """Those of its objects that are manifests."""
        return (key for key in self.objects if key.is_manifest)

    @property
    def size(self) -> int:
        """Bytes that are there."""
        return sum(self.objects.values())

    @property
    def missing(self) -> int:
        """Bytes that are not there of the platforms that are."""
        return sum(platform.missing for platform in self.platforms)

    @property
    def whole(self) -> bool:
        """Whether all is there of each platform that is, and one is."""
        return bool(self.platforms) and not self.missing


class Catalogue:
    """The images of a cache."""

    def __init__(self, objects: Objects, sections: Sequence[Section], threads: Executor) -> None:
        """Use ``threads`` for what reads files."""
        self.sections = sections
        self._objects = objects
        self._threads = threads

    async def names(self, wanted: Places = lambda _: True) -> AsyncGenerator[list[Named], None]:
        """The names that ``wanted`` is true of, a page at a time.

        Raises:
            IndexUnavailableError: the cache cannot be read.
        """
        for section in self.sections:
            async for page in section.tags.pages(wanted):
                found = ((link, name, means.descriptor) for link, name, means in page)
                yield [
                    Named(section, link, name, means.digest, means.media_type in _INDEXES)
                    for link, name, means in found
                ]

    async def images(self, places: Places = lambda _: True) -> AsyncGenerator[CachedImage, None]:
        """The images of the repositories that ``places`` is true of, by tag and by digest.

        A digest is left out where a tag or an index of the same repository leads to it.

        Raises:
            IndexUnavailableError: the cache cannot be read.
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
        """The images of manifests that are not among the ``named``.

        Raises:
            IndexUnavailableError: the cache cannot be read.
        """
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
        """All manifests, a page at a time.

        Raises:
            IndexUnavailableError: the cache cannot be read.
        """
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
        """Those of the manifests that are there.

        Raises:
            IndexUnavailableError: the cache cannot be read.
        """
        held = await self._held(kinds, digests)
        nodes = await self._run(lambda: [read_node(key, each) for key, each in held.items()])
        return {node.key: node for node in nodes if node is not None}

    async def without_name(self, digests: Iterable[Digest]) -> list[CachedImage]:
        """The images of manifests, those of them that are there.

        Raises:
            IndexUnavailableError: the cache cannot be read.
        """
        nodes = await self.nodes(MANIFEST_KINDS, digests)
        return await self._images_of(nodes.values())

    async def _images_of(self, nodes: Collection[Node]) -> list[CachedImage]:
        """What manifests are that nobody has a name for."""
        images: list[CachedImage] = []
        for kind, (manifests, blobs) in _REACH.items():
            roots = [(None, node) for node in nodes if node.key.kind == kind]
            images += await self._built(roots, manifests, blobs)
        return images

    async def resolved(self, page: Sequence[Named]) -> list[CachedImage]:
        """The images of names, those of them that are there; for a page at most.

        Raises:
            IndexUnavailableError: the cache cannot be read.
        """
        images: list[CachedImage] = []
        for section in self.sections:
            mine = [each for each in page if each.section is section]
            nodes = await self.nodes(section.manifests, {each.digest for each in mine})
            found = ((each.name, _first(nodes, section.manifests, each.digest)) for each in mine)
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
        around = _Surroundings(nodes, held, manifests, blobs)

        def made() -> list[CachedImage]:
            platforms = around.platforms()
            return [_image(name, root, around, platforms) for name, root in roots]

        return await self._run(made)

    async def _held(self, kinds: Iterable[str], digests: Iterable[Digest]) -> dict[ObjectKey, Held]:
        digests = list(digests)
        keys = [ObjectKey(kind, digest) for kind in kinds for digest in digests]
        return await self._objects.consult(lambda index: index.held(keys))

    async def _run(self, function: Callable[[], R]) -> R:
        return await asyncio.get_running_loop().run_in_executor(self._threads, function)


@dataclass(frozen=True, slots=True)
class _Surroundings:
    """What is there around some images, and of which kinds it may be to count for them."""

    nodes: Mapping[ObjectKey, Node]
    held: Mapping[ObjectKey, Held]
    manifests: Sequence[str]
    blobs: Sequence[str]

    def manifest(self, digest: Digest) -> Node | None:
        return _first(self.nodes, self.manifests, digest)

    def blob(self, digest: Digest) -> tuple[ObjectKey, Held] | None:
        keys = (ObjectKey(kind, digest) for kind in self.blobs)
        return next(((key, self.held[key]) for key in keys if key in self.held), None)

    def platforms(self) -> dict[ObjectKey, str]:
        """What images run on, in the words of their configurations, where those are there."""
        configs = ((key, node.blobs[0]) for key, node in self.nodes.items() if node.blobs)
        found = ((key, self.blob(config.digest)) for key, config in configs)
        return {key: platform_of(config[1]) for key, config in found if config is not None}


def _first(nodes: Mapping[ObjectKey, Node], kinds: Iterable[str], digest: Digest) -> Node | None:
    keys = (ObjectKey(kind, digest) for kind in kinds)
    return next((nodes[key] for key in keys if key in nodes), None)


def _mark(named: Named) -> str:
    """What may stand for a name only once; a tag that means two things to two clients is two."""
    name = named.name
    return str(name) if name.by_digest else f"{name}@{named.digest}"


def _marks(image: CachedImage) -> set[str]:
    """The names for which an image stands."""
    assert image.name is not None, "only names are asked for"
    digests = {f"{image.name.place}@{key.digest}" for key in image.manifests}
    return digests | {f"{image.name}@{image.digest}"}


def _image(
    name: FullName | None,
    root: Node,
    around: _Surroundings,
    platforms: Mapping[ObjectKey, str],
) -> CachedImage:
    image = CachedImage(name, root.key, root.held.media_type, root.held.used)
    image.objects[root.key] = root.held.size
    leaves = [(root, "")] if not root.is_index else []
    for part in root.manifests:
        node = around.manifest(part.digest)
        if node is not None:
            leaves.append((node, part.platform))
    for node, platform in leaves:
        image.used = max(image.used, node.held.used)
        size, missing = node.held.size, 0
        image.objects[node.key] = node.held.size
        for part in node.blobs:
            found = around.blob(part.digest)
            if found is None:
                missing += part.size
                continue
            key, held = found
            image.objects[key] = held.size
            size += held.size
        if platform != _UNKNOWN:
            named = platform or platforms.get(node.key, "")
            image.platforms.append(CachedPlatform(named, node.key.digest, size, missing))
    return image
