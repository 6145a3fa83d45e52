"""Signatures of cosign with a key: who signed which manifest.  Pure; the bytes come from outside.

Two layouts: a payload of simple signing with the signature beside it, and a Sigstore bundle with a
DSSE envelope (github.com/secure-systems-lab/dsse) around an in-toto statement.
"""

import base64
import binascii
import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_public_key,
)

from mirror.oci.digest import Digest
from mirror.policy import ed25519ph
from mirror.policy.rules import Identity, Rule

SIMPLE_SIGNING: Final = "application/vnd.dev.cosign.simplesigning.v1+json"
BUNDLE: Final = "application/vnd.dev.sigstore.bundle.v0.3+json"
#: The annotation of a layer with the signature of its payload.
ANNOTATION: Final = "dev.cosignproject.cosign/signature"

_PAYLOAD_TYPE: Final = "cosign container image signature"
_STATEMENT: Final = "application/vnd.in-toto+json"
_STATEMENT_TYPES: Final = frozenset(
    {"https://in-toto.io/Statement/v1", "https://in-toto.io/Statement/v0.1"}
)
#: Other predicates are attestations, such as the result of a scan: they approve nothing.
_SIGNED: Final = "https://sigstore.dev/cosign/sign/v1"
_CURVES: Final[Mapping[str, tuple[hashes.HashAlgorithm, ...]]] = {
    "secp256r1": (hashes.SHA256(),),
    "secp384r1": (hashes.SHA384(), hashes.SHA256()),  # the latter by older releases of cosign
}
_LEAST_RSA_BITS: Final = 2048
_NEEDED: Final = "a PEM file with a public key: ECDSA P-256 or P-384, Ed25519, or RSA"

_Key = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | rsa.RSAPublicKey


class NotSignedError(ValueError):
    """A signature does not approve the manifest; the message says why."""


@dataclass(frozen=True, slots=True)
class Signed:
    """The manifest that must be signed, and the names of its repository."""

    digest: Digest
    repositories: frozenset[str]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A signature as found: ``signature`` (base64) of ``payload``, or a bundle without it."""

    payload: bytes
    signature: str | None = None

    @property
    def is_keyless(self) -> bool:
        """Whether it is a bundle with a certificate, not one by a key."""
        try:
            material = _object(json.loads(self.payload)).get("verificationMaterial")
            return self.signature is None and "publicKey" not in _object(material)
        except (ValueError, RecursionError):
            return False


@lru_cache(64)
def parse_key(pem: bytes) -> _Key:
    """Return the public key in a PEM file.

    Raises:
        ValueError: the file has none, or one of another kind.
    """
    try:
        key = load_pem_public_key(pem)
    except Exception as error:
        raise ValueError(_NEEDED) from error
    known = isinstance(key, ed25519.Ed25519PublicKey)
    known = known or (isinstance(key, ec.EllipticCurvePublicKey) and key.curve.name in _CURVES)
    known = known or (isinstance(key, rsa.RSAPublicKey) and key.key_size >= _LEAST_RSA_BITS)
    if not known:
        raise ValueError(_NEEDED)
    return key  # type: ignore[return-value]  # one of these


def fingerprint(pem: bytes) -> str:
    """Return the hash that identifies a key, however its file is written."""
    spki = parse_key(pem).public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(spki).hexdigest()


def accepted(rule: Rule) -> set[str]:
    """Return what identifies the keys and the identities of a rule in records."""
    return {fingerprint(pem) for pem in rule.keys} | set(map(identity_mark, rule.identities))


@lru_cache(64)
def identity_mark(identity: Identity) -> str:
    """Return the hash that identifies an identity under its trusted root."""
    root = hashlib.sha256(identity.root).hexdigest()
    return hashlib.sha256(json.dumps([identity.glob, identity.issuer, root]).encode()).hexdigest()


def signer(candidate: Candidate, signed: Signed, pems: Sequence[bytes]) -> str:
    """Return the fingerprint of the key that signed the manifest.

    Raises:
        NotSignedError: none of the keys did, or they signed something else.
    """
    try:
        if candidate.signature is None:
            return _bundle(candidate.payload, signed, pems)
        key = _key_of(_decoded(candidate.signature), candidate.payload, pems)
        _check_payload(_object(json.loads(candidate.payload)), signed)
        return key
    except NotSignedError:
        raise
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise NotSignedError("a signature of another form") from error


def _check_payload(payload: Mapping[str, Any], signed: Signed) -> None:
    critical = _object(payload["critical"])
    if critical["type"] != _PAYLOAD_TYPE:
        raise NotSignedError("a signature of something else than an image")
    _check_digest([_object(critical["image"])["docker-manifest-digest"]], signed)
    _check_repository(_object(critical["identity"])["docker-reference"], signed)


def _bundle(body: bytes, signed: Signed, pems: Sequence[bytes]) -> str:
    envelope = _object(_object(json.loads(body))["dsseEnvelope"])
    kind, payload = envelope["payloadType"], _decoded(envelope["payload"])
    message = b"DSSEv1 %d %b %d %b" % (len(kind), kind.encode(), len(payload), payload)
    (signature,) = envelope["signatures"]
    key = _key_of(_decoded(_object(signature)["sig"]), message, pems)
    check_statement(kind, payload, signed)
    return key


def check_statement(kind: str, payload: bytes, signed: Signed) -> None:
    """Check the verified payload of an envelope.

    Raises:
        NotSignedError: it does not approve the manifest.
        ValueError, LookupError, TypeError: it has another form.
    """
    statement = _object(json.loads(payload))
    if kind != _STATEMENT or statement["_type"] not in _STATEMENT_TYPES:
        raise NotSignedError("a signature of another form")
    if statement["predicateType"] != _SIGNED:
        raise NotSignedError("an attestation, not a signature")
    algorithm = signed.digest.algorithm
    subjects = [_object(subject) for subject in statement["subject"]]
    hexes = [_object(subject["digest"]).get(algorithm) for subject in subjects]
    _check_digest([f"{algorithm}:{digits}" for digits in hexes], signed)
    for subject in subjects:
        if subject.get("name"):
            _check_repository(subject["name"], signed)


def _check_digest(digests: Collection[object], signed: Signed) -> None:
    if str(signed.digest) not in digests:
        raise NotSignedError("a signature of another digest")


def _check_repository(reference: object, signed: Signed) -> None:
    if not isinstance(reference, str):
        raise NotSignedError("a signature of another form")
    name = reference.partition("@")[0]
    head, _, last = name.rpartition("/")
    name = f"{head}/{last.partition(':')[0]}"
    if name not in signed.repositories:
        raise NotSignedError(f"a signature for another repository, {reference[:200]!r}")


def _key_of(signature: bytes, message: bytes, pems: Sequence[bytes]) -> str:
    for pem in pems:
        if _verifies(parse_key(pem), signature, message):
            return fingerprint(pem)
    if not pems:
        raise NotSignedError("a signature by a key, or in a tag .sig, but the rule has no keys")
    raise NotSignedError("a signature by none of the keys")


def _verifies(key: _Key, signature: bytes, message: bytes) -> bool:
    if isinstance(key, ec.EllipticCurvePublicKey):
        return any(
            _is_valid(key, signature, message, ec.ECDSA(algorithm))
            for algorithm in _CURVES[key.curve.name]
        )
    if isinstance(key, rsa.RSAPublicKey):
        return _is_valid(key, signature, message, padding.PKCS1v15(), hashes.SHA256())
    ph = ed25519ph.verifies(key.public_bytes_raw(), signature, message)  # cosign from 2.3 on
    return ph or _is_valid(key, signature, message)


def _is_valid(key: Any, *arguments: object) -> bool:
    try:
        key.verify(*arguments)
    except InvalidSignature:
        return False
    return True


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise NotSignedError("a signature of another form") from error


def _object(value: object) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise NotSignedError("a signature of another form")
    return value
