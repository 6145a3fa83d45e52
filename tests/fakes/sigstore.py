"""A Sigstore of our own: a CA, a CT log, a transparency log and a timestamp authority."""

import base64
import hashlib
import json
import struct
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tests.fakes.signing import BUNDLE, statement

WORKFLOW = "https://github.com/org/app/.github/workflows/release.yml@refs/tags/v1.2"
GITHUB = "https://token.actions.githubusercontent.com"
_ISSUER = x509.ObjectIdentifier("1.3.6.1.4.1.57264.1.8")  # of Fulcio: the issuer of the token
_SCTS = x509.ObjectIdentifier("1.3.6.1.4.1.11129.2.4.2")
_SHA256 = "2.16.840.1.101.3.4.2.1"
_TST_INFO = "1.2.840.113549.1.9.16.1.4"
_SINCE = datetime(2026, 1, 1, tzinfo=UTC)
_LIFETIME = timedelta(minutes=10)


def key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def _spki(private: ec.EllipticCurvePrivateKey) -> bytes:
    return private.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _log_id(private: ec.EllipticCurvePrivateKey) -> bytes:
    return hashlib.sha256(_spki(private)).digest()


def _signed(private: ec.EllipticCurvePrivateKey, message: bytes) -> bytes:
    return private.sign(message, ec.ECDSA(hashes.SHA256()))


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)] if text else [])


def der(tag: int, *parts: bytes) -> bytes:
    """An element of ASN.1."""
    content = b"".join(parts)
    size = len(content)
    digits = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return (
        bytes([tag])
        + (bytes([size]) if size < 128 else bytes([128 + len(digits)]) + digits)
        + content
    )


def _oid(dotted: str) -> bytes:
    first, second, *others = map(int, dotted.split("."))
    content = bytearray([first * 40 + second])
    for number in others:
        groups = [number & 127]
        while number := number >> 7:
            groups.append(128 | number & 127)
        content += bytes(reversed(groups))
    return der(6, bytes(content))


def _certificate(
    subject: str, public: Any, issuer: x509.Name, signer: Any, start: datetime, days: float
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(_name(subject))
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
        )
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    ca = signs_certificates
    return x509.KeyUsage(not ca, False, False, False, False, ca, ca, False, False)


@dataclass
class Authority:
    """A CA with a self-signed certificate."""

    name: str
    key: ec.EllipticCurvePrivateKey = field(default_factory=key)

    def __post_init__(self) -> None:
        builder = _certificate(
            self.name, self.key.public_key(), _name(self.name), self.key, _SINCE, 3650
        )
        builder = builder.add_extension(x509.BasicConstraints(True, None), critical=True)
        builder = builder.add_extension(_usage(signs_certificates=True), critical=True)
        self.certificate = builder.sign(self.key, hashes.SHA256())


@dataclass
class Sigstore:
    """Signs as ``cosign sign`` does without a key, and trusts itself."""

    ca: Authority = field(default_factory=lambda: Authority("fulcio"))
    ct: ec.EllipticCurvePrivateKey = field(default_factory=key)
    log: ec.EllipticCurvePrivateKey = field(default_factory=key)
    tsa: Authority = field(default_factory=lambda: Authority("tsa root"))
    clock: ec.EllipticCurvePrivateKey = field(default_factory=key)

    def __post_init__(self) -> None:
        issuer = self.tsa.certificate.subject
        builder = _certificate("tsa", self.clock.public_key(), issuer, self.tsa.key, _SINCE, 3650)
        use = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.TIME_STAMPING])
        builder = builder.add_extension(use, critical=True)
        builder = builder.add_extension(_usage(signs_certificates=False), critical=True)
        self.clock_certificate = builder.sign(self.tsa.key, hashes.SHA256())

    @property
    def root(self) -> dict[str, Any]:
        """The content of trusted_root.json."""

        def authority(*chain: x509.Certificate) -> dict[str, Any]:
            certificates = [{"rawBytes": _b64(each.public_bytes(Encoding.DER))} for each in chain]
            return {
                "subject": {"organization": "test", "commonName": "test"},
                "uri": "https://authority.test",
                "certChain": {"certificates": certificates},
                "validFor": {"start": "2026-01-01T00:00:00Z"},
            }

        def log(private: ec.EllipticCurvePrivateKey) -> dict[str, Any]:
            return {
                "baseUrl": "https://log.test",
                "hashAlgorithm": "SHA2_256",
                "publicKey": {
                    "rawBytes": _b64(_spki(private)),
                    "keyDetails": "PKIX_ECDSA_P256_SHA_256",
                    "validFor": {"start": "2026-01-01T00:00:00Z"},
                },
                "logId": {"keyId": _b64(_log_id(private))},
            }

        return {
            "mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1",
            "tlogs": [log(self.log)],
            "certificateAuthorities": [authority(self.ca.certificate)],
            "ctlogs": [log(self.ct)],
            "timestampAuthorities": [authority(self.clock_certificate, self.tsa.certificate)],
        }

    def certify(self, public: Any, who: str, issuer: str, start: datetime) -> x509.Certificate:
        """Certify a key for ten minutes, with an entry in the CT log."""
        name = x509.RFC822Name if "://" not in who else x509.UniformResourceIdentifier
        days = _LIFETIME / timedelta(days=1)
        builder = _certificate("", public, self.ca.certificate.subject, self.ca.key, start, days)
        use = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING])
        token = x509.UnrecognizedExtension(_ISSUER, der(12, issuer.encode()))
        builder = (
            builder.add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(use, critical=False)
            .add_extension(x509.SubjectAlternativeName([name(who)]), critical=True)
            .add_extension(token, critical=False)
        )

        def with_sct(signature: bytes) -> x509.Certificate:
            sct = struct.pack("!B32sQHBBH", 0, _log_id(self.ct), stamp, 0, 4, 3, len(signature))
            sct += signature
            listed = struct.pack("!HH", len(sct) + 2, len(sct)) + sct
            scts = x509.UnrecognizedExtension(_SCTS, der(4, listed))
            return builder.add_extension(scts, critical=False).sign(self.ca.key, hashes.SHA256())

        stamp = int(start.timestamp() * 1000)
        tbs = with_sct(b"").tbs_precertificate_bytes
        entry = _log_id(self.ca.key) + len(tbs).to_bytes(3, "big") + tbs
        head = struct.pack("!BBQH", 0, 0, stamp, 1)
        return with_sct(_signed(self.ct, head + entry + b"\0\0"))

    def entry(self, body: dict[str, Any], time: datetime | None) -> dict[str, Any]:
        """Put an entry into a new log, which promises ``time`` unless that is None."""
        canonical = json.dumps(body, separators=(",", ":"), sort_keys=True).encode()
        leaf = hashlib.sha256(b"\0" + canonical).digest()
        tree = "" if time is None else " - 1"  # Rekor 1 names the tree
        note = f"log.test{tree}\n1\n{_b64(leaf)}\n"
        signature = _b64(_log_id(self.log)[:4] + _signed(self.log, note.encode()))
        entry: dict[str, Any] = {
            "logIndex": "0",
            "logId": {"keyId": _b64(_log_id(self.log))},
            "kindVersion": {"kind": body["kind"], "version": body["apiVersion"]},
            "inclusionProof": {
                "logIndex": "0",
                "rootHash": _b64(leaf),
                "treeSize": "1",
                "hashes": [],
                "checkpoint": {"envelope": f"{note}\n\N{EM DASH} log.test {signature}\n"},
            },
            "canonicalizedBody": _b64(canonical),
        }
        if time is not None:
            promised = {
                "body": _b64(canonical),
                "integratedTime": int(time.timestamp()),
                "logID": _log_id(self.log).hex(),
                "logIndex": 0,
            }
            message = json.dumps(promised, separators=(",", ":"), sort_keys=True).encode()
            entry["integratedTime"] = str(promised["integratedTime"])
            entry["inclusionPromise"] = {"signedEntryTimestamp": _b64(_signed(self.log, message))}
        return entry

    def timestamp(self, message: bytes, time: datetime) -> bytes:
        """The authority's answer to a request for a timestamp (RFC 3161)."""
        algorithm = der(48, _oid(_SHA256))
        imprint = der(48, algorithm, der(4, hashlib.sha256(message).digest()))
        when = der(24, time.strftime("%Y%m%d%H%M%SZ").encode())
        info = der(48, der(2, b"\1"), _oid("1.2.3.4"), imprint, der(2, b"\1"), when)
        mine = self.clock_certificate.public_bytes(Encoding.DER)
        mark = der(48, der(48, der(48, der(4, hashlib.sha256(mine).digest()))))
        attributes = [
            ("1.2.840.113549.1.9.3", _oid(_TST_INFO)),
            ("1.2.840.113549.1.9.4", der(4, hashlib.sha256(info).digest())),
            ("1.2.840.113549.1.9.16.2.47", mark),
        ]
        signed = b"".join(sorted(der(48, _oid(name), der(49, each)) for name, each in attributes))
        serial = self.clock_certificate.serial_number
        number = der(2, serial.to_bytes(serial.bit_length() // 8 + 1, "big"))
        signer = der(
            48,
            der(2, b"\1"),
            der(48, self.clock_certificate.issuer.public_bytes(), number),
            algorithm,
            der(160, signed),
            der(48, _oid("1.2.840.10045.4.3.2")),
            der(4, _signed(self.clock, der(49, signed))),
        )
        content = der(48, _oid(_TST_INFO), der(160, der(4, info)))
        version = der(2, b"\3")
        data = der(48, version, der(49, algorithm), content, der(160, mine), der(49, signer))
        answer = der(48, _oid("1.2.840.113549.1.7.2"), der(160, data))
        return der(48, der(48, der(2, b"\0")), answer)

    def bundle(
        self,
        body: bytes,
        who: str = WORKFLOW,
        issuer: str = GITHUB,
        *,
        layout: str = "dsse",
        late: timedelta = timedelta(0),
        timestamps: int = 0,
    ) -> dict[str, Any]:
        """Sign a statement, or with the layout "message" the manifest itself.

        The log vouches for the time: ``late`` after the start of the certificate's ten minutes.
        ``timestamps``: 1 for the timestamp authority instead; -1 for nobody.
        """
        start = datetime.now(UTC).replace(microsecond=0) - timedelta(days=30)
        private, time = key(), start + late
        certificate = self.certify(private.public_key(), who, issuer, start)
        kind = "application/vnd.in-toto+json"
        message = body
        if layout == "dsse":
            message = f"DSSEv1 {len(kind)} {kind} {len(body)} ".encode() + body
        signature = _signed(private, message)
        if timestamps:
            entry = self.entry(_second(certificate, message, signature), None)
        else:
            entry = self.entry(_first(layout, certificate, message, body, signature), time)
        material: dict[str, Any] = {
            "certificate": {"rawBytes": _b64(certificate.public_bytes(Encoding.DER))},
            "tlogEntries": [entry],
        }
        if timestamps > 0:
            stamps = [{"signedTimestamp": _b64(self.timestamp(signature, time))}]
            material["timestampVerificationData"] = {"rfc3161Timestamps": stamps}
        document: dict[str, Any] = {"mediaType": BUNDLE, "verificationMaterial": material}
        if layout == "dsse":
            signatures = [{"sig": _b64(signature)}]
            envelope = {"payload": _b64(body), "payloadType": kind, "signatures": signatures}
            return document | {"dsseEnvelope": envelope}
        digest = {"algorithm": "SHA2_256", "digest": _b64(hashlib.sha256(body).digest())}
        return document | {
            "messageSignature": {"messageDigest": digest, "signature": _b64(signature)}
        }


def _first(
    layout: str, certificate: x509.Certificate, message: bytes, body: bytes, signature: bytes
) -> dict[str, Any]:
    """The body of an entry of Rekor 1."""
    verifier, signed = _b64(certificate.public_bytes(Encoding.PEM)), _b64(signature)
    whole = {"algorithm": "sha256", "value": hashlib.sha256(message).hexdigest()}
    if layout == "message":
        content = {"content": signed, "publicKey": {"content": verifier}}
        spec = {"data": {"hash": whole}, "signature": content}
        return {"apiVersion": "0.0.1", "kind": "hashedrekord", "spec": spec}
    payload = {"algorithm": "sha256", "value": hashlib.sha256(body).hexdigest()}
    signatures = [{"signature": signed, "verifier": verifier}]
    spec = {"envelopeHash": whole, "payloadHash": payload, "signatures": signatures}
    return {"apiVersion": "0.0.1", "kind": "dsse", "spec": spec}


def _second(certificate: x509.Certificate, message: bytes, signature: bytes) -> dict[str, Any]:
    """The body of an entry of Rekor 2, which promises no time."""
    verifier = {
        "x509Certificate": {"rawBytes": _b64(certificate.public_bytes(Encoding.DER))},
        "keyDetails": "PKIX_ECDSA_P256_SHA_256",
    }
    content = {"content": _b64(signature), "verifier": verifier}
    data = {"algorithm": "SHA2_256", "digest": _b64(hashlib.sha256(message).digest())}
    spec = {"hashedRekordV002": {"data": data, "signature": content}}
    return {"apiVersion": "0.0.2", "kind": "hashedrekord", "spec": spec}


def keyless(site: Sigstore, digest: str, **changes: Any) -> bytes:
    """The bundle of ``cosign sign`` for a manifest."""
    return json.dumps(site.bundle(statement(digest), **changes)).encode()
