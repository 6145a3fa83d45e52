"""Images put together from what is stored: what is there of each, and what it lacks.

Plain values; reads nothing but small configurations.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from mirror.oci.digest import Digest
from mirror.oci.image_glob import FullName
from mirror.store.images.manifest_graph import Node, platform_of
from mirror.store.local.index import Held
from mirror.store.local.layout import PRIVATE_MANIFESTS, ObjectKey

_UNKNOWN: Final = "unknown/unknown"  # what an attestation says it runs on


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


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What is there around some images, and of which kinds it may be to count for them."""

    nodes: Mapping[ObjectKey, Node]
    held: Mapping[ObjectKey, Held]
    manifests: Sequence[str]
    blobs: Sequence[str]

    def manifest(self, digest: Digest) -> Node | None:
        """A manifest, None where it is not there."""
        return first(self.nodes, self.manifests, digest)

    def blob(self, digest: Digest) -> tuple[ObjectKey, Held] | None:
        """A blob, None where it is not there."""
        keys = (ObjectKey(kind, digest) for kind in self.blobs)
        return next(((key, self.held[key]) for key in keys if key in self.held), None)

    def platforms(self) -> dict[ObjectKey, str]:
        """What images run on, in the words of their configurations, where those are there."""
        configs = ((key, node.blobs[0]) for key, node in self.nodes.items() if node.blobs)
        found = ((key, self.blob(config.digest)) for key, config in configs)
        return {key: platform_of(config[1]) for key, config in found if config is not None}


def first(nodes: Mapping[ObjectKey, Node], kinds: Iterable[str], digest: Digest) -> Node | None:
    """The manifest of a digest, of the first of the kinds that is there."""
    keys = (ObjectKey(kind, digest) for kind in kinds)
    return next((nodes[key] for key in keys if key in nodes), None)


def assembled(
    name: FullName | None,
    root: Node,
    around: Surroundings,
    platforms: Mapping[ObjectKey, str],
) -> CachedImage:
    """An image of which ``root`` is the manifest that its name means.

    ``platforms`` are what manifests run on of which no index says so.
    """
    image = CachedImage(name, root.key, root.held.media_type, root.held.used)
    image.objects[root.key] = root.held.size
    leaves = [(root, "")] if not root.is_index else []
    for part in root.manifests:
        node = around.manifest(part.digest)
        if node is not None:
            leaves.append((node, part.platform))
    sizes: dict[ObjectKey, tuple[int, int]] = {}
    for node, platform in leaves:
        if node.key not in sizes:  # an index may name a manifest for many platforms
            sizes[node.key] = _added(image, node, around)
        size, missing = sizes[node.key]
        if platform != _UNKNOWN:
            named = platform or platforms.get(node.key, "")
            image.platforms.append(CachedPlatform(named, node.key.digest, size, missing))
    return image


def _added(image: CachedImage, node: Node, around: Surroundings) -> tuple[int, int]:
    """Add a manifest and its blobs to an image; the bytes that are there and that are not."""
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
    return size, missing
