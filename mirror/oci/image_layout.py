"""The OCI image layout: the names in it, and its index (image-layout.md).

Knows what stands in ``oci-layout`` and ``index.json``.  Must not know where the files are: a
directory, a tar, a pipe.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from mirror.oci.digest import Digest, InvalidDigest
from mirror.oci.image_name import ImageName, parse_image
from mirror.oci.manifest import (
    Descriptor,
    IndexEntry,
    NotAManifest,
    descriptor_fields,
    index_entries,
    references,
)
from mirror.oci.media_types import OCI_INDEX

MARKER_FILE: Final = "oci-layout"
INDEX_FILE: Final = "index.json"
ARCHIVE_FILE: Final = "manifest.json"  # Docker's own, from before there were layouts
MARKER: Final = b'{"imageLayoutVersion":"1.0.0"}'
REF_NAME: Final = "org.opencontainers.image.ref.name"
CONTAINERD_NAME: Final = "io.containerd.image.name"

_BLOB: Final = re.compile(r"blobs/([a-z0-9]+)/([0-9a-f]+)", re.ASCII)
_SHOWN: Final = 80


class NotALayout(ValueError):  # noqa: N818  # says what it is
    """Files that are no OCI image layout."""


class UnsafeName(NotALayout):
    """A file name that would lead out of the layout."""


@dataclass(frozen=True, slots=True)
class NamedRoot:
    """One entry of a layout's index: a manifest, and what it is called (None: nobody says)."""

    descriptor: Descriptor
    image: ImageName | None


def blob_file(digest: Digest) -> str:
    """Where a layout keeps what has this digest."""
    return f"blobs/{digest.algorithm}/{digest.hex}"


def parse_file(name: str) -> Digest | str | None:
    """What a file of a layout is: a digest, the marker's or the index's name; None: of no interest.

    Raises:
        UnsafeName: no layout has a file of that name, and a program that unpacks it would write
            somewhere else.
    """
    if "\\" in name or "\0" in name or name.startswith("/") or ".." in name.split("/"):
        raise UnsafeName(f"has a file {name[:_SHOWN]!r}, which leads out of it")
    plain = name.removeprefix("./")
    if plain in {MARKER_FILE, INDEX_FILE}:
        return plain
    matched = _BLOB.fullmatch(plain)
    try:
        return Digest.parse(f"{matched[1]}:{matched[2]}") if matched else None
    except InvalidDigest:  # by an algorithm that no client knows
        return None


def check_marker(data: bytes) -> None:
    """Make sure that a layout is of the version there is.

    Raises:
        NotALayout: it is not.
    """
    try:
        version = json.loads(data)["imageLayoutVersion"]
    except (ValueError, RecursionError, KeyError, TypeError):
        raise NotALayout(f"{MARKER_FILE} does not say what version it is") from None
    if not isinstance(version, str) or not version.startswith("1."):
        raise NotALayout(f"is a layout of version {str(version)[:_SHOWN]!r}, not 1.0.0")


def parse_index(data: bytes) -> tuple[NamedRoot, ...]:
    """What a layout's index holds.

    Raises:
        NotALayout: it is no index.
    """
    try:
        entries = index_entries(data)
    except NotAManifest as error:
        raise NotALayout(f"{INDEX_FILE}: {error}") from error
    return tuple(NamedRoot(entry.descriptor, _name(entry)) for entry in entries)


def merged_index(data: bytes, roots: Iterable[tuple[Descriptor, str]]) -> bytes:
    """A layout's index with more manifests in it, which take the place of those of the same name.

    Raises:
        NotALayout: it was no index.
    """
    parse_index(data)
    document, more = json.loads(data), json.loads(written_index(roots))
    names = {entry["annotations"][REF_NAME] for entry in more["manifests"]}
    before = zip(document.get("manifests") or [], index_entries(data), strict=True)
    kept = [raw for raw, entry in before if entry.annotations.get(REF_NAME) not in names]
    return json.dumps({**document, "manifests": kept + more["manifests"]}, indent=2).encode()


def written_archive(images: Iterable[tuple[bytes, str]]) -> bytes:
    """What ``docker load`` looks for instead of an index: images by their manifests, with names.

    Raises:
        NotAManifest: one is none.
    """
    entries = []
    for manifest, name in images:
        config, *layers = (blob_file(part.digest) for part in references(manifest))
        tags = [name] if "@" not in name else []
        entries.append({"Config": config, "RepoTags": tags, "Layers": layers})
    return json.dumps(entries).encode()


def written_index(roots: Iterable[tuple[Descriptor, str]]) -> bytes:
    """An index of manifests and their full names, as skopeo, containerd and Docker read it."""
    manifests = [
        {
            **descriptor_fields(descriptor),
            "annotations": {CONTAINERD_NAME: name, REF_NAME: name},
        }
        for descriptor, name in roots
    ]
    document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests}
    return json.dumps(document, indent=2).encode()


def _name(entry: IndexEntry) -> ImageName | None:
    """Docker and containerd write the whole name apart, and skopeo what its user wrote.

    A word alone is a tag: nobody can tell of which image.
    """
    for key in (CONTAINERD_NAME, REF_NAME):
        text = entry.annotations.get(key, "")
        if not text or (key == REF_NAME and "/" not in text and ":" not in text):
            continue
        try:
            return parse_image(text)
        except ValueError:
            continue
    return None
