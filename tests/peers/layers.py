"""Images of layers as they are packed today: zstd, and eStargz, which is read a file at a time."""

import gzip
import hashlib
import io
import json
import struct
import subprocess
import tarfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from tests.fakes.content import OCI_MANIFEST, Image, digest_of

_LAYER = "application/vnd.oci.image.layer.v1.tar"
_CONFIG = "application/vnd.oci.image.config.v1+json"
_TOC = "stargz.index.json"
_FOOTER_BYTES = 51

Fetch = Callable[[int, int], bytes]


@dataclass(frozen=True)
class Layer:
    """A layer as it is stored, and what its tar hashes to."""

    media_type: str
    packed: bytes
    diff_id: str
    annotations: Mapping[str, str] = field(default_factory=dict)


def zstd_layer(files: Mapping[str, bytes]) -> Layer:
    """A layer packed by the zstd program."""
    tar = b"".join(head + body for _, head, body in _members(files)) + bytes(1024)
    packed = subprocess.run(["zstd", "-q", "-1"], input=tar, capture_output=True, check=True).stdout
    return Layer(f"{_LAYER}+zstd", packed, digest_of(tar))


def estargz_layer(files: Mapping[str, bytes]) -> Layer:
    """A layer whose files are gzip members of their own, with a table of contents at the end."""
    packed, tar, entries = bytearray(), bytearray(), []
    for name, head, body in _members(files):
        packed += gzip.compress(head, 1)
        entries.append(
            {
                "name": name,
                "type": "reg",
                "size": len(files[name]),
                "mode": 0o755,
                "offset": len(packed),
                "digest": digest_of(files[name]),
            }
        )
        packed += gzip.compress(body, 1)
        tar += head + body
    toc = json.dumps({"version": 1, "entries": entries}).encode()
    start = len(packed)
    ((_, head, body),) = _members({_TOC: toc})
    packed += gzip.compress(head + body + bytes(1024)) + _footer(start)
    tar += head + body + bytes(1024)
    annotations = {"containerd.io/snapshot/stargz/toc.digest": digest_of(toc)}
    return Layer(f"{_LAYER}+gzip", bytes(packed), digest_of(bytes(tar)), annotations)


def read_lazily(layer: Layer, fetch: Fetch, name: str) -> bytes:
    """One file of an eStargz layer, by as few bytes as that takes, verified as a snapshotter does.

    ``fetch`` gives the bytes of the layer from one offset up to another.
    """
    size = len(layer.packed)
    footer = fetch(size - _FOOTER_BYTES, size)
    start = int(footer[16:32], 16)
    assert footer[32:38] == b"STARGZ"
    unpacked = gzip.decompress(fetch(start, size - _FOOTER_BYTES))
    with tarfile.open(fileobj=io.BytesIO(unpacked)) as archive:
        member = archive.extractfile(_TOC)
        assert member is not None
        toc = member.read()
    assert digest_of(toc) == layer.annotations["containerd.io/snapshot/stargz/toc.digest"]
    entries = json.loads(toc)["entries"]
    place = next(at for at, entry in enumerate(entries) if entry["name"] == name)
    entry, ends = entries[place], [*(one["offset"] for one in entries), start]
    # Up to the next file's body: its header is another gzip member, which is left out.
    body = zlib.decompressobj(wbits=31).decompress(fetch(entry["offset"], ends[place + 1]))
    content = body[: entry["size"]]
    assert digest_of(content) == entry["digest"]
    return content


def image_of(layers: Sequence[Layer], command: Sequence[str]) -> Image:
    """An OCI image of these layers."""
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Cmd": list(command)},
            "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in layers]},
        }
    ).encode()
    descriptors = [
        _descriptor(layer.media_type, layer.packed) | {"annotations": dict(layer.annotations)}
        for layer in layers
    ]
    body = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": _descriptor(_CONFIG, config),
        "layers": descriptors,
    }
    blobs = (config, *(layer.packed for layer in layers))
    return Image(json.dumps(body).encode(), OCI_MANIFEST, blobs)


def signature_of(image: Image, reference: str, key: str) -> Image:
    """What cosign attaches to an image: a signed statement of its digest and name."""
    payload = json.dumps(
        {
            "critical": {
                "identity": {"docker-reference": reference},
                "image": {"docker-manifest-digest": image.digest},
                "type": "cosign container image signature",
            },
            "optional": {},
        }
    ).encode()
    command = ["openssl", "dgst", "-sha256", "-sign", key]
    signed = subprocess.run(command, input=payload, capture_output=True, check=True).stdout
    encoded = subprocess.run(
        ["openssl", "base64", "-A"], input=signed, capture_output=True, check=True
    ).stdout.decode()
    config = json.dumps(
        {
            "architecture": "",
            "os": "",
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": [digest_of(payload)]},
        }
    ).encode()
    layer = _descriptor("application/vnd.dev.cosign.simplesigning.v1+json", payload)
    layer["annotations"] = {"dev.cosignproject.cosign/signature": encoded}
    body = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": _descriptor(_CONFIG, config),
        "layers": [layer],
    }
    return Image(json.dumps(body).encode(), OCI_MANIFEST, (config, payload))


def _members(files: Mapping[str, bytes]) -> list[tuple[str, bytes, bytes]]:
    """Of each file its name, its tar header, and its content padded to blocks."""
    members = []
    for name, content in files.items():
        member = tarfile.TarInfo(name)
        member.size, member.mode = len(content), 0o755
        members.append((name, member.tobuf(), content + bytes(-len(content) % 512)))
    return members


def _footer(start: int) -> bytes:
    """The 51 bytes by which readers find the table of contents: an empty gzip member."""
    extra = b"SG" + struct.pack("<H", 22) + f"{start:016x}STARGZ".encode()
    header = b"\x1f\x8b\x08\x04" + bytes(4) + b"\x00\xff" + struct.pack("<H", len(extra))
    return header + extra + b"\x01\x00\x00\xff\xff" + bytes(8)


def _descriptor(media_type: str, data: bytes) -> dict[str, object]:
    digest = "sha256:" + hashlib.sha256(data).hexdigest()
    return {"mediaType": media_type, "digest": digest, "size": len(data)}
