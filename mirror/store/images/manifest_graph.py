"""Reads the parts of a stored manifest from its file.

A file that has been removed yields None, and one that cannot be parsed yields a manifest without
parts: one bad file must not end a scan of the cache.
"""

import json
from dataclasses import dataclass
from typing import Final

from mirror.oci.digest import Digest
from mirror.oci.manifest import NotAManifest, index_entries, references
from mirror.store.local.index import Held
from mirror.store.local.layout import ObjectKey

_MOST_CONFIG_BYTES: Final = 256 * 1024
#: Layers that no registry serves (formerly those of Windows base images).
_FOREIGN: Final = ("nondistributable", "foreign")


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
            if not any(word in descriptor.media_type for word in _FOREIGN)
        )
        return Node(key, held, (), tuple({part.digest: part for part in blobs}.values()))
    except NotAManifest:
        return Node(key, held)


def _manifests(index: bytes) -> tuple[Part, ...]:
    parts = (
        Part(
            entry.descriptor.digest,
            entry.descriptor.size,
            "/".join(filter(None, entry.platform)),
        )
        for entry in index_entries(index)
    )
    return tuple(dict.fromkeys(parts))


def platform_of(config: Held) -> str:
    """Return os/architecture/variant from an image configuration, empty if not given."""
    if config.size > _MOST_CONFIG_BYTES:
        return ""
    try:
        fields = json.loads(config.path.read_bytes())
        words = [fields.get(name) for name in ("os", "architecture", "variant")]
    except (OSError, ValueError, RecursionError, AttributeError):
        return ""
    return "/".join(word for word in words if isinstance(word, str) and word)
