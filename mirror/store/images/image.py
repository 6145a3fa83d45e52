"""Stored manifests and their parts, and the images that they make up.

Plain values.  The only files it reads are manifests and small image configurations.  A manifest
that has been removed yields None, and one that cannot be parsed yields a manifest without parts:
one bad file must not end a scan of the cache.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from mirror.oci.digest import Digest
from mirror.oci.image_glob import FullName
from mirror.oci.manifest import PLATFORM_FIELDS, NotAManifest, index_entries, references, shown
from mirror.store.local.entry import Held
from mirror.store.local.layout import PRIVATE_MANIFESTS, ObjectKey

_UNKNOWN: Final = "unknown/unknown"  # the platform of an attestation manifest
_MOST_CONFIG_BYTES: Final = 256 * 1024


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a manifest: digest, size in bytes, and the platform if an index names it."""

    digest: Digest
    size: int
    platform: str = ""


@dataclass(frozen=True, slots=True)
class Node:
    """A stored manifest and its parts: the manifests of an index, or config and layers."""

    key: ObjectKey
    held: Held
    manifests: tuple[Part, ...] = ()
    blobs: tuple[Part, ...] = ()

    @property
    def is_index(self) -> bool:
        """Whether the manifest names other manifests."""
        return bool(self.manifests)


def read_node(key: ObjectKey, held: Held) -> Node | None:
    """Read a manifest; return None if its file has been removed."""
    try:
        body = held.path.read_bytes()
    except OSError:
        return None
    try:
        if b'"manifests"' in body and (manifests := _manifests(body)):
            return Node(key, held, manifests)
        blobs = (
            Part(descriptor.digest, descriptor.size)
            for descriptor in references(body)
            if not descriptor.is_foreign
        )
        return Node(key, held, (), tuple({part.digest: part for part in blobs}.values()))
    except NotAManifest:
        return Node(key, held)


def _manifests(index: bytes) -> tuple[Part, ...]:
    entries = ((entry.descriptor, entry.platform) for entry in index_entries(index))
    parts = (Part(part.digest, part.size, "/".join(filter(None, place))) for part, place in entries)
    return tuple(dict.fromkeys(parts))


def platform_of(config: Held) -> str:
    """Return os/architecture/variant from an image configuration, empty if not given."""
    if config.size > _MOST_CONFIG_BYTES:
        return ""
    try:
        fields = json.loads(config.path.read_bytes())
        words = [shown(fields.get(name)) for name in PLATFORM_FIELDS]
    except (OSError, ValueError, RecursionError, AttributeError):
        return ""
    return "/".join(filter(None, words))


@dataclass(frozen=True, slots=True)
class CachedPlatform:
    """One manifest of an image with its blobs; ``size`` stored and ``missing`` bytes."""

    platform: str
    digest: Digest
    size: int
    missing: int


@dataclass(slots=True)
class CachedImage:
    """An image of which at least one manifest is stored.

    ``name`` is None if it is unknown.  ``objects`` are the stored objects of the image with their
    sizes in bytes; ``used`` is the time of the last pull (Unix seconds).
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
        """The digest of the manifest that the name refers to."""
        return self.key.digest

    @property
    def private(self) -> bool:
        """Whether the image is served only to clients that upstream has authorized."""
        return self.key.kind == PRIVATE_MANIFESTS

    @property
    def manifests(self) -> Iterable[ObjectKey]:
        return (key for key in self.objects if key.is_manifest)

    @property
    def size(self) -> int:
        """The stored bytes."""
        return sum(self.objects.values())

    @property
    def missing(self) -> int:
        """The missing bytes of the platforms whose manifest is stored."""
        return sum(platform.missing for platform in self.platforms)

    @property
    def whole(self) -> bool:
        """Whether at least one platform is stored, and all stored platforms are complete."""
        return bool(self.platforms) and not self.missing


@dataclass(frozen=True, slots=True)
class Surroundings:
    """The stored objects around some images, and the kinds of objects that count for them."""

    nodes: Mapping[ObjectKey, Node]
    held: Mapping[ObjectKey, Held]
    manifests: Sequence[str]
    blobs: Sequence[str]

    def blob(self, digest: Digest) -> tuple[ObjectKey, Held] | None:
        keys = (ObjectKey(kind, digest) for kind in self.blobs)
        return next(((key, self.held[key]) for key in keys if key in self.held), None)

    def platforms(self) -> dict[ObjectKey, str]:
        """Return the platforms of the manifests whose configuration is stored."""
        configs = ((key, node.blobs[0]) for key, node in self.nodes.items() if node.blobs)
        found = ((key, self.blob(config.digest)) for key, config in configs)
        return {key: platform_of(config[1]) for key, config in found if config is not None}


def first(nodes: Mapping[ObjectKey, Node], kinds: Iterable[str], digest: Digest) -> Node | None:
    """Return the manifest of a digest, in the first of the kinds in which it is stored."""
    keys = (ObjectKey(kind, digest) for kind in kinds)
    return next((nodes[key] for key in keys if key in nodes), None)


def assembled(
    name: FullName | None,
    root: Node,
    around: Surroundings,
    platforms: Mapping[ObjectKey, str],
) -> CachedImage:
    """Assemble the image whose name refers to the manifest ``root``.

    ``platforms`` gives the platform of manifests for which no index names one.
    """
    image = CachedImage(name, root.key, root.held.media_type, root.held.used)
    image.objects[root.key] = root.held.size
    leaves = [(root, "")] if not root.is_index else []
    for part in root.manifests:
        node = first(around.nodes, around.manifests, part.digest)
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
    """Add a manifest and its blobs to an image; return the stored and the missing bytes."""
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
