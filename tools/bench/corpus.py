"""The files to pull, laid out like the responses of a registry, so that nginx alone can be one.

Each file is made on first use: a single row does not need to wait for all of them.
"""

import gzip
import hashlib
import io
import json
import os
import tarfile
from functools import cached_property
from pathlib import Path

REPOSITORY = "library/bench"
MANIFEST_TYPE = "application/vnd.docker.distribution.manifest.v2+json"
ACCEPT = f"{MANIFEST_TYPE}, application/vnd.oci.image.manifest.v1+json"  # as every client sends
MIB = 1 << 20

_CONFIG_TYPE = "application/vnd.docker.container.image.v1+json"
_LAYER_TYPE = "application/vnd.docker.image.rootfs.diff.tar.gzip"
_NOISE_BYTES = 16 * MIB
_SMALL_BYTES = 64 * 1024
_SMALL_BLOBS = 32


class Corpus:
    """Files below ``root``; methods return URL paths."""

    def __init__(self, root: Path, large_bytes: int) -> None:
        self.root = root
        self.large_bytes = large_bytes
        self.middle_bytes = large_bytes // 4
        for kind in ("blobs", "manifests"):
            (root / "v2" / REPOSITORY / kind).mkdir(parents=True)

    @cached_property
    def large(self) -> str:
        return self._blob([self._noise] * (self.large_bytes // _NOISE_BYTES))

    @cached_property
    def middle(self) -> str:
        return self._blob([self._noise[::-1]] * (self.middle_bytes // _NOISE_BYTES))

    @cached_property
    def small(self) -> list[str]:
        return [self._blob([os.urandom(_SMALL_BYTES)]) for _ in range(_SMALL_BLOBS)]

    @cached_property
    def tiny(self) -> str:
        return self._blob([os.urandom(4096)])

    @cached_property
    def manifest(self) -> tuple[str, str]:
        """A manifest by digest and by tag, of about 2 KB, as images of 8 layers have it."""
        parts = [self._sized([os.urandom(512)]) for _ in range(9)]
        return self._manifest("small", parts[0], parts[1:])

    def image(self, tag: str = "image", layers: int = 4, layer_bytes: int = 0) -> list[str]:
        """An image that dockerd can unpack, as large as the large blob if not said otherwise.

        Returns the paths that clients request; the first is the tag.
        """
        by_digest, by_tag = self._image(tag, layers, layer_bytes or self.middle_bytes)
        manifest = json.loads((self.root / by_digest[1:]).read_bytes())
        parts = (manifest["config"], *manifest["layers"])
        return [by_tag, by_digest, *(self._path("blobs", part["digest"]) for part in parts)]

    @cached_property
    def _noise(self) -> bytes:
        # Repeated noise is enough, since no server compresses or deduplicates; random bytes for a
        # GiB take seconds.
        return os.urandom(_NOISE_BYTES)

    def _image(self, tag: str, count: int, size: int) -> tuple[str, str]:
        archives = [self._archive(at, size) for at in range(count)]
        layers = [self._sized([gzip.compress(tar, compresslevel=0)]) for tar in archives]
        config = {
            "architecture": "amd64",
            "os": "linux",
            "config": {},
            "rootfs": {
                "type": "layers",
                "diff_ids": [f"sha256:{hashlib.sha256(tar).hexdigest()}" for tar in archives],
            },
        }
        return self._manifest(tag, self._sized([json.dumps(config).encode()]), layers)

    def _archive(self, at: int, size: int) -> bytes:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            member = tarfile.TarInfo(f"noise{at}")
            member.size = size
            data = bytes([at]) + (self._noise * -(-size // _NOISE_BYTES))[1:size]
            archive.addfile(member, io.BytesIO(data))
        return buffer.getvalue()

    def _manifest(
        self, tag: str, config: tuple[int, str], layers: list[tuple[int, str]]
    ) -> tuple[str, str]:
        def described(media_type: str, part: tuple[int, str]) -> dict[str, object]:
            return {"mediaType": media_type, "size": part[0], "digest": f"sha256:{part[1]}"}

        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": described(_CONFIG_TYPE, config),
            "layers": [described(_LAYER_TYPE, layer) for layer in layers],
        }
        data = json.dumps(manifest, indent=1).encode()
        paths = [
            self._path("manifests", name)
            for name in (f"sha256:{hashlib.sha256(data).hexdigest()}", tag)
        ]
        for path in paths:
            (self.root / path[1:]).write_bytes(data)
        return paths[0], paths[1]

    def _blob(self, pieces: list[bytes]) -> str:
        return self._path("blobs", f"sha256:{self._sized(pieces)[1]}")

    def _sized(self, pieces: list[bytes]) -> tuple[int, str]:
        """Size and hash of a blob that is written."""
        digest = hashlib.sha256()
        for piece in pieces:
            digest.update(piece)
        with (self.root / self._path("blobs", f"sha256:{digest.hexdigest()}")[1:]).open(
            "wb"
        ) as out:
            out.writelines(pieces)
        return sum(map(len, pieces)), digest.hexdigest()

    @staticmethod
    def _path(kind: str, name: str) -> str:
        return f"/v2/{REPOSITORY}/{kind}/{name}"
