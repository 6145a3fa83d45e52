"""The content of the soak's registry: made from a seed, so that all processes know all bytes.

Blobs are windows into one random block, each with its own number in front: a client can compare any
range without the content, and no blob equals another.
"""

import hashlib
import json
import math
import random
from dataclasses import dataclass

from tests.fakes.content import OCI_MANIFEST, digest_of

KIB, MIB = 1 << 10, 1 << 20
_SMALLEST, _LARGEST = KIB, 8 * MIB
_BLOCK = 16 * MIB
_REPOSITORIES = 20
_MANIFESTS_EACH = 6
_TAGS_EACH = 3
_LAYERS = 3


@dataclass(frozen=True)
class Blob:
    number: int
    start: int  # in the random block
    size: int
    digest: str


class Catalogue:
    """Blobs, manifests by repository, and tags for some of them."""

    def __init__(self, seed: int, blobs: int = 300) -> None:
        draw = random.Random(seed)
        self._block = memoryview(draw.randbytes(_BLOCK))
        self.blobs = [self._blob(draw, number) for number in range(blobs)]
        self.manifests = {
            f"soak/app{number}": [self._manifest(draw) for _ in range(_MANIFESTS_EACH)]
            for number in range(_REPOSITORIES)
        }
        self.digests = {
            repository: [digest_of(body) for body in bodies]
            for repository, bodies in self.manifests.items()
        }
        self.tags = [f"v{number}" for number in range(_TAGS_EACH)]
        self.bytes = sum(blob.size for blob in self.blobs)

    def content(self, blob: Blob, start: int = 0, stop: int | None = None) -> bytes:
        """The bytes of a blob from ``start`` to ``stop``."""
        head = blob.number.to_bytes(16, "big")
        end = blob.size if stop is None else stop
        rest = self._block[blob.start + max(start, 16) : blob.start + max(end, 16)]
        return head[start:end] + bytes(rest)

    def _blob(self, draw: random.Random, number: int) -> Blob:
        size = round(math.exp(draw.uniform(math.log(_SMALLEST), math.log(_LARGEST))))
        unnamed = Blob(number, draw.randrange(_BLOCK - _LARGEST), size, "")
        digest = hashlib.sha256(self.content(unnamed)).hexdigest()
        return Blob(number, unnamed.start, size, f"sha256:{digest}")

    def _manifest(self, draw: random.Random) -> bytes:
        config, *layers = (_descriptor(draw.choice(self.blobs)) for _ in range(1 + _LAYERS))
        body = {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": config,
            "layers": layers,
            "annotations": {"marker": draw.randbytes(8).hex()},
        }
        return json.dumps(body).encode()


def _descriptor(blob: Blob) -> dict[str, object]:
    return {"mediaType": "application/octet-stream", "digest": blob.digest, "size": blob.size}
