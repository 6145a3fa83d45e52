"""Manifests, read just enough to know them from a captive portal's HTML.

Knows the fields that say what a manifest is and what it is made of.  Must not know where it came
from, and never writes one anew: its bytes are its identity.
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
_MAX_SIZE: Final = 2**63 - 1  # what the clients' int64 holds
_MAX_VALUES: Final = 400_000  # 4 MiB of descriptors have half as many; of "[]," over two million
_SHOWN: Final = 80
_INDEX, _IMAGE, _ARTIFACT, _SCHEMA1 = "an index", "an image", "an artifact", "schema 1"
#: The fields by which the kinds of manifests differ.
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
    """Bytes that are no manifest."""


class Schema1Unsupported(NotAManifest):
    """A manifest of Docker's first schema, whose digest does not cover its bytes."""

    def __init__(self) -> None:
        super().__init__(
            "an image manifest of schema 1, which Docker gave up in 2019: push the image again"
        )


@dataclass(frozen=True, slots=True)
class Descriptor:
    """What content is and how large, in bytes (OCI image spec, descriptor.md)."""

    media_type: str
    digest: Digest
    size: int


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """One manifest of an index: what it is, for which platform, and what is said about it.

    ``platform`` is os, architecture and variant as they are written there, empty where not.
    """

    descriptor: Descriptor
    platform: tuple[str, str, str]
    annotations: Mapping[str, str]


def encode_descriptor(descriptor: Descriptor) -> bytes:
    """The JSON of a descriptor."""
    return json.dumps(descriptor_fields(descriptor)).encode()


def descriptor_fields(descriptor: Descriptor) -> dict[str, str | int]:
    """A descriptor as an object of JSON."""
    return {
        "mediaType": descriptor.media_type,
        "digest": str(descriptor.digest),
        "size": descriptor.size,
    }


def decode_descriptor(data: bytes) -> Descriptor:
    """Read what :func:`encode_descriptor` wrote.

    Raises:
        ValueError: it is no descriptor.
    """
    return _descriptor(_parse(data))


def identify(body: bytes, content_type: str) -> str:
    """The media type of a manifest.

    Args:
        body: the manifest.
        content_type: what it was sent as; may be empty or as vague as application/json.

    Raises:
        NotAManifest: it is none, or not the one it was sent as.
    """
    sent_as = content_type.partition(";")[0].strip().lower()
    if is_schema1(sent_as):
        raise Schema1Unsupported
    possible = media_types(body)
    if sent_as in MANIFEST_TYPES and sent_as not in possible:
        raise NotAManifest(f"sent as {sent_as}, but its fields say {possible[0]}")
    return sent_as if sent_as in possible else possible[0]


def media_types(body: bytes) -> tuple[str, ...]:
    """The media types that the bytes of a manifest allow, the most likely one first.

    There is one where the manifest has a ``mediaType``; otherwise those of its fields, of which
    only the registry can say which one is meant.

    Raises:
        NotAManifest: it is none, or has the fields of two kinds of manifests.
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
    # Artifact manifests were drafted without a schemaVersion.
    if version != _SCHEMA_VERSION and OCI_ARTIFACT not in (stated, *allowed):
        raise NotAManifest("JSON without schemaVersion 2")
    return (stated,) if stated else allowed


def references(body: bytes) -> tuple[Descriptor, ...]:
    """What a manifest is made of: an index's manifests, or a manifest's config and layers.

    Raises:
        NotAManifest: it is none, or one of its descriptors is malformed.
    """
    document = _parse(body)
    config = document.get("config")
    entries = [] if config is None else [config]
    for key in ("layers", "blobs", "manifests"):
        entries += _listed(document, key)
    return tuple(_descriptor(entry) for entry in entries)


def index_entries(body: bytes) -> tuple[IndexEntry, ...]:
    """The manifests of an index, in order.

    Raises:
        NotAManifest: it is none, or one of its descriptors is malformed.
    """
    return tuple(_entry(entry) for entry in _listed(_parse(body), "manifests"))


def _entry(entry: object) -> IndexEntry:
    descriptor = _descriptor(entry)
    assert isinstance(entry, dict)
    platform, annotations = _texts(entry.get("platform")), _texts(entry.get("annotations"))
    os, architecture = platform.get("os", ""), platform.get("architecture", "")
    return IndexEntry(descriptor, (os, architecture, platform.get("variant", "")), annotations)


def _texts(table: object) -> dict[str, str]:
    """What of a table is text; the rest is of no interest here."""
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
    """What the manifest says it is, if it says so."""
    stated = document.get("mediaType") or ""
    if not isinstance(stated, str):
        raise NotAManifest("a mediaType that is no string")
    if stated and stated not in MANIFEST_TYPES:
        raise NotAManifest(f"says it is {stated[:_SHOWN]!r}, which is no kind of manifest")
    return stated


def _shape(document: dict[str, Any]) -> str:
    """Which kind of manifest has the fields of this one; empty where it has none of any."""
    found = [
        shape
        for shape, fields in _FIELDS.items()
        if any(document.get(field) is not None for field in fields)
    ]
    # One client would take it for an index and another for an image (GHSA-mc8v-mgrf-8f4m).
    if len(found) > 1:
        raise NotAManifest(f"{' and '.join(found)} in one")
    return found[0] if found else ""


def _is_complete(document: dict[str, Any], shape: str) -> bool:
    """Whether the fields are enough to know a manifest that does not say what it is."""
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
        raise NotAManifest(f"{key} that are no list")
    return entries


def _descriptor(entry: object) -> Descriptor:
    if not isinstance(entry, dict):
        raise NotAManifest("a descriptor that is no object")
    size, media_type, digest = entry.get("size"), entry.get("mediaType"), entry.get("digest")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= _MAX_SIZE:
        raise NotAManifest("a descriptor without a size")
    if not isinstance(media_type, str) or not isinstance(digest, str):
        raise NotAManifest("a descriptor without media type or digest")
    try:
        return Descriptor(media_type, Digest.parse(digest), size)
    except ValueError as error:
        raise NotAManifest(str(error)) from error
