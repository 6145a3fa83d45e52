"""Signatures as cosign makes them with a key, in both layouts, for a fake registry."""

import base64
import json
from dataclasses import dataclass, field
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.fakes.content import OCI_INDEX, OCI_MANIFEST, digest_of
from tests.fakes.registry import FakeRegistry

SIMPLE_SIGNING = "application/vnd.dev.cosign.simplesigning.v1+json"
BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"
KINDS = ("p256", "p384", "p384-sha256", "ed25519", "rsa")


@dataclass
class Signer:
    """A private key; ``kind`` is one of ``KINDS``."""

    kind: str = "p256"
    key: Any = field(init=False)

    def __post_init__(self) -> None:
        if self.kind == "ed25519":
            self.key = ed25519.Ed25519PrivateKey.generate()
        elif self.kind == "rsa":
            self.key = rsa.generate_private_key(65537, 2048)
        else:
            self.key = ec.generate_private_key(
                ec.SECP256R1() if self.kind == "p256" else ec.SECP384R1()
            )

    @property
    def pem(self) -> bytes:
        public = self.key.public_key()
        return public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    def sign(self, message: bytes) -> str:
        if self.kind == "ed25519":
            signature = self.key.sign(message)
        elif self.kind == "rsa":
            signature = self.key.sign(message, padding.PKCS1v15(), hashes.SHA256())
        else:
            algorithm = hashes.SHA384() if self.kind == "p384" else hashes.SHA256()
            signature = self.key.sign(message, ec.ECDSA(algorithm))
        return base64.b64encode(signature).decode()


def payload(digest: str, repository: str) -> bytes:
    """What cosign signs in the old layout."""
    critical = {
        "identity": {"docker-reference": repository},
        "image": {"docker-manifest-digest": digest},
        "type": "cosign container image signature",
    }
    return json.dumps({"critical": critical, "optional": None}).encode()


def statement(digest: str, predicate: str = "https://sigstore.dev/cosign/sign/v1") -> bytes:
    """What cosign signs in the new layout."""
    algorithm, _, digits = digest.partition(":")
    document = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"digest": {algorithm: digits}}],
        "predicateType": predicate,
        "predicate": {},
    }
    return json.dumps(document).encode()


def bundle(signer: Signer, body: bytes, kind: str = "application/vnd.in-toto+json") -> bytes:
    message = f"DSSEv1 {len(kind)} {kind} {len(body)} ".encode() + body
    envelope = {
        "payload": base64.b64encode(body).decode(),
        "payloadType": kind,
        "signatures": [{"sig": signer.sign(message)}],
    }
    hint = {"publicKey": {"hint": "x"}}
    document = {"mediaType": BUNDLE, "verificationMaterial": hint, "dsseEnvelope": envelope}
    return json.dumps(document).encode()


def attach(
    registry: FakeRegistry, repo: str, digest: str, body: bytes, signature: str | None = None
) -> str:
    """Attach a signed payload to an image, or a bundle; return the digest of its manifest."""
    layer: dict[str, Any] = {"digest": registry.add_blob(body), "size": len(body)}
    layer["mediaType"] = BUNDLE if signature is None else SIMPLE_SIGNING
    config = registry.add_blob(b"{}")
    document: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": config, "size": 2},
        "layers": [layer],
    }
    if signature is not None:
        layer["annotations"] = {"dev.cosignproject.cosign/signature": signature}
        tag = f"{digest.replace(':', '-')}.sig"
        return registry.add_manifest(repo, json.dumps(document).encode(), OCI_MANIFEST, tag)
    document["artifactType"] = BUNDLE
    document["subject"] = {"mediaType": OCI_MANIFEST, "digest": digest, "size": 1}
    manifest = json.dumps(document).encode()
    if registry.referrers_api:
        return registry.add_manifest(repo, manifest, OCI_MANIFEST)
    added = registry.add_manifest(repo, manifest, OCI_MANIFEST)
    entry: dict[str, Any] = {"mediaType": OCI_MANIFEST, "digest": added, "size": len(manifest)}
    other = {**entry, "artifactType": "text/plain", "digest": unrelated()}
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [other, entry]}
    registry.add_manifest(repo, json.dumps(index).encode(), OCI_INDEX, digest.replace(":", "-"))
    return added


def signature(
    signer: Signer, digest: str, repository: str, layout: str
) -> tuple[bytes, str | None]:
    """Return the arguments of :func:`attach`, in the ``old`` or the ``new`` layout."""
    if layout == "new":
        return bundle(signer, statement(digest)), None
    body = payload(digest, repository)
    return body, signer.sign(body)


def unrelated() -> str:
    """A digest of something else."""
    return digest_of(b"something else")
