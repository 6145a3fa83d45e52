"""Layouts as other programs write them."""

import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from typing import Literal

from tests.fakes import Image
from tests.fakes.content import digest_of

MARKER = b'{"imageLayoutVersion": "1.0.0"}'


def blob_path(data: bytes) -> str:
    return f"blobs/sha256/{digest_of(data).removeprefix('sha256:')}"


def index_of(images: Iterable[tuple[Image, Mapping[str, str]]]) -> bytes:
    """An index of images with annotations."""
    manifests = [
        {
            "mediaType": image.media_type,
            "digest": image.digest,
            "size": len(image.manifest),
            "annotations": dict(annotations),
        }
        for image, annotations in images
    ]
    return json.dumps({"schemaVersion": 2, "manifests": manifests}).encode()


def files_of(image: Image, **annotations: str) -> dict[str, bytes]:
    """A layout with one image, in the order of skopeo and Docker: the index comes last."""
    named = {name.replace("_", "."): value for name, value in annotations.items()}
    blobs = {blob_path(data): data for data in (*image.blobs, image.manifest)}
    return {**blobs, "index.json": index_of([(image, named)]), "oci-layout": MARKER}


def packed(files: Mapping[str, bytes], mode: Literal["w", "w:gz", "w:bz2", "w:xz"] = "w") -> bytes:
    """A tar with directories, as Go programs write it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for directory in ("blobs", "blobs/sha256"):
            member = tarfile.TarInfo(directory + "/")
            member.type = tarfile.DIRTYPE
            archive.addfile(member)
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def saved_by_docker(image: Image, name: str) -> bytes:
    """What ``docker save`` of Docker 25 and later writes."""
    tag = name.rpartition(":")[2]
    files = files_of(image, io_containerd_image_name=name, org_opencontainers_image_ref_name=tag)
    config, *layers = (blob_path(data) for data in image.blobs)
    repository = name.rpartition(":")[0].removeprefix("docker.io/library/")
    archive = [{"Config": config, "RepoTags": [f"{repository}:{tag}"], "Layers": layers}]
    files["manifest.json"] = json.dumps(archive).encode()
    files["repositories"] = json.dumps({repository: {tag: layers[-1].rpartition("/")[2]}}).encode()
    return packed(files)
