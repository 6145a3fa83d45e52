"""The OCI image layout: its file names and its index (image-layout.md).

Knows the content of ``oci-layout`` and ``index.json``.  Must not know where the files are: a
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
ARCHIVE_FILE: Final = "manifest.json"  # of Docker's older format
MARKER: Final = b'{"imageLayoutVersion":"1.0.0"}'
REF_NAME: Final = "org.opencontainers.image.ref.name"
CONTAINERD_NAME: Final = "io.containerd.image.name"

_BLOB: Final = re.compile(r"blobs/([a-z0-9]+)/([0-9a-f]+)", re.ASCII)
_SHOWN: Final = 80


class NotALayout(ValueError):  # noqa: N818  # says what it is
    """Files are not an OCI image layout."""


class UnsafeName(NotALayout):
    """A file name points outside the layout."""


@dataclass(frozen=True, slots=True)
class NamedRoot:
    """One entry of a layout's index: a manifest and its image name (None: no name)."""

    descriptor: Descriptor
    image: ImageName | None


def blob_file(digest: Digest) -> str:
    return f"blobs/{digest.algorithm}/{digest.hex}"


def parse_file(name: str) -> Digest | str | None:
    """Classify a file of a layout: the digest of a blob, or the name of the marker or the index.

    None means that the file is ignored.

    Raises:
        UnsafeName: a program that unpacks this name would write outside the layout.
    """
    if "\\" in name or "\0" in name or name.startswith("/") or ".." in name.split("/"):
        raise UnsafeName(f"has a file {name[:_SHOWN]!r}, which leads out of it")
    plain = name.removeprefix("./")
    if plain in {MARKER_FILE, INDEX_FILE}:
        return plain
    matched = _BLOB.fullmatch(plain)
    try:
        return Digest.parse(f"{matched[1]}:{matched[2]}") if matched else None
    except InvalidDigest:  # of an unknown algorithm
        return None


def check_marker(data: bytes) -> None:
    """Check that a layout has a supported version.

    Raises:
        NotALayout: the version is missing or not supported.
    """
    try:
        version = json.loads(data)["imageLayoutVersion"]
    except (ValueError, RecursionError, KeyError, TypeError):
        raise NotALayout(f"{MARKER_FILE} does not say what version it is") from None
    if not isinstance(version, str) or not version.startswith("1."):
        raise NotALayout(f"is a layout of version {str(version)[:_SHOWN]!r}, not 1.0.0")


def parse_index(data: bytes) -> tuple[NamedRoot, ...]:
    """Parse the index of a layout.

    Raises:
        NotALayout: the bytes are not an index.
    """
    try:
        entries = index_entries(data)
    except NotAManifest as error:
        raise NotALayout(f"{INDEX_FILE}: {error}") from error
    return tuple(NamedRoot(entry.descriptor, _name(entry)) for entry in entries)


def merged_index(data: bytes, roots: Iterable[tuple[Descriptor, str]]) -> bytes:
    """Add manifests to a layout's index; they replace manifests of the same name.

    Raises:
        NotALayout: the bytes are not an index.
    """
    parse_index(data)
    document, more = json.loads(data), json.loads(written_index(roots))
    names = {entry["annotations"][REF_NAME] for entry in more["manifests"]}
    before = zip(document.get("manifests") or [], index_entries(data), strict=True)
    kept = [raw for raw, entry in before if entry.annotations.get(REF_NAME) not in names]
    return json.dumps({**document, "manifests": kept + more["manifests"]}, indent=2).encode()


def written_archive(images: Iterable[tuple[bytes, str]]) -> bytes:
    """Return ``manifest.json`` for ``docker load``, from pairs of a manifest and a name.

    Raises:
        NotAManifest: the bytes of an image are not a manifest.
    """
    entries = []
    for manifest, name in images:
        config, *layers = (blob_file(part.digest) for part in references(manifest))
        tags = [name] if "@" not in name else []
        entries.append({"Config": config, "RepoTags": tags, "Layers": layers})
    return json.dumps(entries).encode()


def written_index(roots: Iterable[tuple[Descriptor, str]]) -> bytes:
    """Return an index of manifests with full names, as skopeo, containerd and Docker read it."""
    manifests = [
        {**descriptor_fields(root), "annotations": {CONTAINERD_NAME: name, REF_NAME: name}}
        for root, name in roots
    ]
    document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests}
    return json.dumps(document, indent=2).encode()


def _name(entry: IndexEntry) -> ImageName | None:
    """Return the image name of an entry.

    Docker and containerd write the full name in CONTAINERD_NAME; skopeo writes the text that its
    user gave in REF_NAME.  A single word there is a tag and does not tell the image.
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
