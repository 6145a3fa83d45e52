"""Images that run: busybox and layers of noise, uploaded by plain HTTP."""

import gzip
import hashlib
import io
import json
import os
import tarfile
import urllib.request
from pathlib import Path

from tests.fakes.content import Image
from tests.waiting import LIMIT_SECONDS

_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
_CONFIG = "application/vnd.docker.container.image.v1+json"
_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"


def push_image(registry: str, repository: str, tag: str, marker: str, noise: list[int]) -> None:
    """Upload an image that prints ``marker``, with layers of so many random bytes."""
    busybox = Path("/bin/busybox").read_bytes()
    layers = [_tar({"bin/busybox": busybox}), _tar({"marker": marker.encode()})]
    layers += [_tar({f"noise{at}": os.urandom(size)}) for at, size in enumerate(noise)]
    packed = [gzip.compress(layer, compresslevel=0) for layer in layers]
    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Cmd": ["/bin/busybox", "cat", "/marker"]},
        "rootfs": {"type": "layers", "diff_ids": [_digest(layer) for layer in layers]},
    }
    encoded = json.dumps(config).encode()
    for blob in (encoded, *packed):
        _push_blob(registry, repository, blob)
    manifest = {
        "schemaVersion": 2,
        "mediaType": _MANIFEST,
        "config": {"mediaType": _CONFIG, "size": len(encoded), "digest": _digest(encoded)},
        "layers": [
            {"mediaType": _LAYER, "size": len(blob), "digest": _digest(blob)} for blob in packed
        ],
    }
    url = f"{registry}/v2/{repository}/manifests/{tag}"
    _send("PUT", url, json.dumps(manifest).encode(), _MANIFEST)


def push(registry: str, repository: str, image: Image, *references: str) -> None:
    """Upload an image as it is, under tags or its own digest."""
    for blob in image.blobs:
        _push_blob(registry, repository, blob)
    for reference in references:
        url = f"{registry}/v2/{repository}/manifests/{reference}"
        _send("PUT", url, image.manifest, image.media_type)


def _tar(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(data), 0o755
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def _digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def _push_blob(registry: str, repository: str, data: bytes) -> None:
    location = _send("POST", f"{registry}/v2/{repository}/blobs/uploads/", b"")
    separator = "&" if "?" in location else "?"
    _send("PUT", f"{location}{separator}digest={_digest(data)}", data)


def _send(method: str, url: str, data: bytes, media_type: str = "application/octet-stream") -> str:
    request = urllib.request.Request(url, data, {"Content-Type": media_type}, method=method)
    with urllib.request.urlopen(request, timeout=LIMIT_SECONDS) as response:
        return str(response.headers.get("Location", ""))
