"""Manifests: parsed only as far as needed to tell them from other content, such as a web page.

Knows the fields for the type and the parts of a manifest.  Must not know where a manifest came
from, and never serializes one again: the digest covers its bytes.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from mirror.oci.digest import Digest
from mirror.oci.media_types import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    MANIFEST_TYPES,
    OCI_ARTIFACT,
    OCI_INDEX,
    OCI_MANIFEST,
    is_schema1,
)

_SCHEMA_VERSION: Final = 2
_MAX_SIZE: Final = 2**63 - 1  # the clients use int64
_MAX_VALUES: Final = 400_000  # 4 MiB of descriptors have half as many; of "[]," over two million
_SHOWN: Final = 80
PLATFORM_FIELDS: Final = ("os", "architecture", "variant")
#: Layers that no registry serves (formerly those of Windows base images).
_FOREIGN: Final = ("nondistributable", "foreign")
_LAYERS: Final = ("application/vnd.oci.image.layer.", "application/vnd.docker.image.rootfs.")
_INDEX, _IMAGE, _ARTIFACT, _SCHEMA1 = "an index", "an image", "an artifact", "schema 1"
#: The fields that only one kind of manifest has.
_FIELDS: Final = {
    _INDEX: ("manifests",),
    _IMAGE: ("config", "layers"),
    _ARTIFACT: ("blobs",),
    _SCHEMA1: ("fsLayers", "signatures"),
}
_TYPES: Final = {
    _INDEX: (OCI_INDEX, DOCKER_LIST),
    _IMAGE: (OCI_MANIFEST, DOCKER_MANIFEST),
    _ARTIFACT: (OCI_ARTIFACT,),
}


class NotAManifest(ValueError):  # noqa: N818  # says what it is
    """The bytes are not a manifest."""


class Schema1Unsupported(NotAManifest):
    """A manifest of Docker's schema 1, whose digest does not cover its bytes."""

    def __init__(self) -> None:
        super().__init__(
            "an image manifest of schema 1, which Docker gave up in 2019: push the image again"
        )


@dataclass(frozen=True, slots=True)
class Descriptor:
    """Media type, digest and size in bytes of content (OCI image spec, descriptor.md)."""

    media_type: str
    digest: Digest
    size: int

    @property
    def is_foreign(self) -> bool:
        """Whether this is a layer that no registry serves."""
        return any(word in self.media_type for word in _FOREIGN)


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """One manifest of an index, with its platform and annotations.

    ``platform`` is os, architecture and variant as written in the index; a missing one, or one that
    cannot be shown, is empty.
    """

    descriptor: Descriptor
    platform: tuple[str, str, str]
    annotations: Mapping[str, str]


def descriptor_fields(descriptor: Descriptor) -> dict[str, str | int]:
    return {
        "mediaType": descriptor.media_type,
        "digest": str(descriptor.digest),
        "size": descriptor.size,
    }


def identify(body: bytes, content_type: str) -> str:
    """Return the media type of a manifest.

    Args:
        body: the manifest.
        content_type: the Content-Type of the answer; may be empty or vague (application/json).

    Raises:
        NotAManifest: the body is not a manifest, or is a manifest of another type.
    """
    sent_as = content_type.partition(";")[0].strip().lower()
    if is_schema1(sent_as):
        raise Schema1Unsupported
    possible = media_types(body)
    if sent_as in MANIFEST_TYPES and sent_as not in possible:
        raise NotAManifest(f"sent as {sent_as}, but its fields say {possible[0]}")
    return sent_as if sent_as in possible else possible[0]


def media_types(body: bytes) -> tuple[str, ...]:
    """Return the possible media types of a manifest, the most likely one first.

    It is one type if the manifest has a ``mediaType``.  Otherwise the fields can fit several
    types, and only the registry can tell which one it is.

    Raises:
        NotAManifest: the body is not a manifest, or has the fields of two kinds of manifests.
    """
    document = _parse(body)
    shape = _shape(document)
    version = document.get("schemaVersion")
    if version == 1 or shape == _SCHEMA1:
        raise Schema1Unsupported
    stated = _stated(document)
    allowed = _TYPES.get(shape, ())
    if stated and allowed and stated not in allowed:
        raise NotAManifest(f"says it is {stated}, but its fields say {allowed[0]}")
    if not stated and not _is_complete(document, shape):
        raise NotAManifest("JSON with neither manifests nor config and layers")
    # The draft of the artifact manifest has no schemaVersion.
    if version != _SCHEMA_VERSION and OCI_ARTIFACT not in (stated, *allowed):
        raise NotAManifest("JSON without schemaVersion 2")
    return (stated,) if stated else allowed


def references(body: bytes) -> tuple[Descriptor, ...]:
    """Return the parts of a manifest: the manifests of an index, or the config and layers.

    Raises:
        NotAManifest: the body is not a manifest, or one of its descriptors is malformed.
    """
    document = _parse(body)
    config = document.get("config")
    entries = [] if config is None else [config]
    for key in ("layers", "blobs", "manifests"):
        entries += _listed(document, key)
    return tuple(_descriptor(entry) for entry in entries)


def image_layers(body: bytes) -> tuple[Digest, ...]:
    """Return the layers of an image in order, each once, without those that no registry serves.

    It is empty for manifests of other content.

    Raises:
        NotAManifest: the body is not a manifest, or one of its descriptors is malformed.
    """
    layers = [_descriptor(entry) for entry in _listed(_parse(body), "layers")]
    served = (each for each in layers if each.media_type.startswith(_LAYERS))
    return tuple(dict.fromkeys(each.digest for each in served if not each.is_foreign))


def is_runnable(body: bytes) -> bool:
    """Whether a manifest is that of an image: it has no layers, or some of an image's types.

    Raises:
        NotAManifest: the body is not a manifest, or one of its descriptors is malformed.
    """
    document = _parse(body)
    layers = [_descriptor(entry) for entry in _listed(document, "layers")]
    if "blobs" in document:  # the draft of the artifact manifest
        return False
    return not layers or any(layer.media_type.startswith(_LAYERS) for layer in layers)


def index_entries(body: bytes) -> tuple[IndexEntry, ...]:
    """Return the manifests of an index, in order.

    Raises:
        NotAManifest: the body is not an index, or one of its descriptors is malformed.
    """
    return tuple(_entry(entry) for entry in _listed(_parse(body), "manifests"))


def _entry(entry: object) -> IndexEntry:
    descriptor = _descriptor(entry)
    assert isinstance(entry, dict)
    platform, annotations = _texts(entry.get("platform")), _texts(entry.get("annotations"))
    os, architecture, variant = (shown(platform.get(name)) for name in PLATFORM_FIELDS)
    return IndexEntry(descriptor, (os, architecture, variant), annotations)


def shown(value: object) -> str:
    """Return a text of an image that pages and commands show; empty if it can harm them.

    Everybody can publish an image: control characters change a terminal, and half of a surrogate
    pair, which JSON can contain, is an error in each output.
    """
    if isinstance(value, str) and value.isprintable() and len(value) <= _SHOWN:
        return value
    return ""


def _texts(table: object) -> dict[str, str]:
    """Return the text values of a table; other values are ignored."""
    fields = table.items() if isinstance(table, dict) else ()
    return {key: value for key, value in fields if isinstance(value, str)}


def _parse(body: bytes) -> dict[str, Any]:
    if sum(map(body.count, (b"{", b"[", b","))) > _MAX_VALUES:
        raise NotAManifest(f"JSON of more than {_MAX_VALUES} values")
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        raise NotAManifest("not JSON") from None
    if not isinstance(document, dict):
        raise NotAManifest("JSON, but no object")
    return document


def _stated(document: dict[str, Any]) -> str:
    """Return the ``mediaType`` of a manifest, empty if it has none."""
    stated = document.get("mediaType") or ""
    if not isinstance(stated, str):
        raise NotAManifest("a mediaType that is not a string")
    if stated and stated not in MANIFEST_TYPES:
        raise NotAManifest(f"says it is {stated[:_SHOWN]!r}, which is not a type of manifest")
    return stated


def _shape(document: dict[str, Any]) -> str:
    """Return the kind of manifest by its fields, empty if it has no field of any kind."""
    found = [
        shape
        for shape, fields in _FIELDS.items()
        if any(document.get(field) is not None for field in fields)
    ]
    # Some clients would read it as an index and others as an image (GHSA-mc8v-mgrf-8f4m).
    if len(found) > 1:
        raise NotAManifest(f"{' and '.join(found)} in one")
    return found[0] if found else ""


def _is_complete(document: dict[str, Any], shape: str) -> bool:
    """Whether the fields are enough to identify a manifest without ``mediaType``."""
    if shape == _IMAGE:
        # Go writes null for an empty slice.
        layers = document.get("layers", ())
        return isinstance(document.get("config"), dict) and isinstance(layers, list | None)
    return any(isinstance(document.get(field), list) for field in _FIELDS.get(shape, ()))


def _listed(document: dict[str, Any], key: str) -> list[Any]:
    entries = document.get(key)
    if entries is None:  # Go writes null for an empty slice
        return []
    if not isinstance(entries, list):
        raise NotAManifest(f"{key} that are not a list")
    return entries


def _descriptor(entry: object) -> Descriptor:
    if not isinstance(entry, dict):
        raise NotAManifest("a descriptor that is not an object")
    size, media_type, digest = entry.get("size"), entry.get("mediaType"), entry.get("digest")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= _MAX_SIZE:
        raise NotAManifest("a descriptor without a size")
    if not isinstance(media_type, str) or not isinstance(digest, str):
        raise NotAManifest("a descriptor without media type or digest")
    try:
        return Descriptor(media_type, Digest.parse(digest), size)
    except ValueError as error:
        raise NotAManifest(str(error)) from error
