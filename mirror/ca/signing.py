"""Keys and certificates as values: a CA, and the certificates it signs for hosts (RFC 5280).

The TLS context of a host is made on first use.
"""

import ipaddress
import logging
import ssl
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from mirror.user_error import UserError

_AUTHORITY_LIFE: Final = timedelta(days=3650)
#: Short, since a certificate is renewed when needed; long enough for a clock that stands still.
HOST_LIFE: Final = timedelta(days=90)
_SKEW: Final = timedelta(days=1)  # for clients whose clock is slow
_MOST_NAME: Final = 64  # characters of a common name


@dataclass(frozen=True, slots=True)
class Authority:
    """A CA: its key, its certificate, and for an intermediate CA the certificates up to a root."""

    key: PrivateKeyTypes
    chain: tuple[x509.Certificate, ...]

    @property
    def certificate(self) -> x509.Certificate:
        """The certificate that belongs to the key."""
        return self.chain[0]

    @property
    def fits(self) -> bool:
        """Whether the key belongs to the certificate."""
        return self.key.public_key() == self.certificate.public_key()

    @property
    def valid_from(self) -> datetime:
        """The start of the validity period."""
        return self.certificate.not_valid_before_utc

    @property
    def valid_until(self) -> datetime:
        """The end of the validity period."""
        return self.certificate.not_valid_after_utc

    def pem(self) -> bytes:
        """Key and certificates as PEM: secret."""
        return _key_pem(self.key) + self.public_pem()

    def public_pem(self) -> bytes:
        """The certificates as PEM, for clients to trust: not secret."""
        return b"".join(each.public_bytes(Encoding.PEM) for each in self.chain)


def new_authority(name: str, now: datetime) -> Authority:
    """Make a self-signed CA that can sign for hosts, but not for other CAs (path length 0)."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:_MOST_NAME])])
    usage = _usage(key_cert_sign=True, crl_sign=True)
    certificate = (
        _builder(subject, subject, key.public_key(), now, now + _AUTHORITY_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .sign(key, hashes.SHA256())
    )
    return Authority(key, (certificate,))


def host_certificate(authority: Authority, host: str, now: datetime) -> bytes:
    """Make a key and a certificate for one host; return them with the CA's chain as PEM.

    Raises:
        ValueError: the CA's key is neither EC nor RSA.
    """
    if not isinstance(authority.key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
        raise ValueError("the key of the CA must be EC or RSA")
    key = ec.generate_private_key(ec.SECP256R1())
    until = min(now + HOST_LIFE, authority.valid_until)
    # The alternative name identifies the host; a common name is too short for long hosts.
    builder = _builder(x509.Name([]), authority.certificate.subject, key.public_key(), now, until)
    signer = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.key.public_key())
    certificate = (
        builder.add_extension(x509.SubjectAlternativeName([_name(host)]), critical=True)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(signer, critical=False)
        .sign(authority.key, hashes.SHA256())
    )
    return _key_pem(key) + certificate.public_bytes(Encoding.PEM) + authority.public_pem()


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    now: datetime,
    until: datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _SKEW)
        .not_valid_after(until)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(
    *, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )


def _name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _key_pem(key: PrivateKeyTypes) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


_RENEW: Final = HOST_LIFE / 3  # before the certificate expires


_log = logging.getLogger(__name__)


def _now() -> datetime:
    return datetime.fromtimestamp(time.time(), UTC)


class CertificateIssuer:
    """Makes and caches a TLS server context per host; the caller limits the number of hosts."""

    def __init__(self, authority: Authority, clock: Callable[[], datetime] = _now) -> None:
        self._authority = authority
        self._clock = clock
        # Each context with the time it was made.
        self._contexts: dict[str, tuple[ssl.SSLContext, datetime]] = {}
        self._told = False

    def context(self, host: str) -> ssl.SSLContext:
        """Return a TLS server context with a certificate for ``host``; the client's SNI is ignored.

        Raises:
            UserError: the CA is not valid now; the log says so once.
        """
        now = self._clock()
        self._check(now)
        context, made = self._contexts.get(host, (None, now))
        # Also renew if the clock was ahead at that time: clients would reject the certificate as
        # not yet valid.
        if context is None or not made <= now < made + HOST_LIFE - _RENEW:
            context = _server(host_certificate(self._authority, host, now))
            self._contexts[host] = context, now
        return context

    def _check(self, now: datetime) -> None:
        authority = self._authority
        if authority.valid_from <= now < authority.valid_until:
            self._told = False
            return
        error = UserError(
            f"the CA of [proxy] is valid from {authority.valid_from:%Y-%m-%d} to "
            f"{authority.valid_until:%Y-%m-%d}, and the clock says {now:%Y-%m-%d}: remove its "
            "ca.pem, restart the mirror, and give the new CA to the clients (mirror ca)"
        )
        if not self._told:
            _log.error("%s", error)
        self._told = True
        raise error


def _server(pem: bytes) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.options &= ~ssl.OP_CIPHER_SERVER_PREFERENCE  # as http/tls.py
    context.set_alpn_protocols(["http/1.1"])
    with tempfile.NamedTemporaryFile(prefix="mirror-") as file:  # ssl reads chains from files only
        file.write(pem)
        file.flush()
        context.load_cert_chain(file.name)
    return context
