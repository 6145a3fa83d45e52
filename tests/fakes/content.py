"""Content for registries: blobs and images with their digests."""

import hashlib
import json
import random
from dataclasses import dataclass

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"

_BLOCK = 1 << 20


def digest_of(data: bytes, algorithm: str = "sha256") -> str:
    return f"{algorithm}:{hashlib.new(algorithm, data).hexdigest()}"


def random_bytes(size: int, seed: int = 0) -> bytes:
    """Bytes that differ from block to block and cost no time: a random block, numbered."""
    block = random.Random(seed).randbytes(min(size, _BLOCK))
    blocks = [number.to_bytes(8, "big") + block[8:] for number in range(size // _BLOCK)]
    rest = size % _BLOCK
    return b"".join(blocks) + block[:rest]


@dataclass(frozen=True)
class Image:
    """A manifest and the blobs it names."""

    manifest: bytes
    media_type: str
    blobs: tuple[bytes, ...]

    @property
    def digest(self) -> str:
        return digest_of(self.manifest)

    @property
    def digests(self) -> list[str]:
        """Of its config and layers."""
        return [digest_of(blob) for blob in self.blobs]


def image(*layers: bytes, media_type: str = OCI_MANIFEST, marker: str = "") -> Image:
    """An image of these layers."""
    config = json.dumps({"architecture": "amd64", "os": "linux", "marker": marker}).encode()
    body = {
        "schemaVersion": 2,
        "mediaType": media_type,
        "config": _descriptor("application/vnd.oci.image.config.v1+json", config),
        "layers": [
            _descriptor("application/vnd.oci.image.layer.v1.tar", layer) for layer in layers
        ],
    }
    return Image(json.dumps(body).encode(), media_type, (config, *layers))


def index(*images: Image, media_type: str = OCI_INDEX) -> bytes:
    """An index over images."""
    manifests = [_descriptor(image.media_type, image.manifest) for image in images]
    body = {"schemaVersion": 2, "mediaType": media_type, "manifests": manifests}
    return json.dumps(body).encode()


def _descriptor(media_type: str, data: bytes) -> dict[str, object]:
    return {"mediaType": media_type, "digest": digest_of(data), "size": len(data)}
