"""The certificate authority of proxy mode: it signs certificates for hosts (RFC 5280).

One file holds its key and its certificate, so that a crash cannot leave a key and a certificate
that do not match.  The first process makes the file under a lock; the others read it.  Versions up
to 0.2.0 kept the file in the cache directory, which backup programs skip.
"""

import contextlib
import fcntl
import ipaddress
import logging
import os
import secrets
import ssl
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509 import load_pem_x509_certificates
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from mirror.user_error import UserError

_AUTHORITY_LIFE: Final = timedelta(days=3650)
#: Short, since a certificate is renewed when needed; long enough for a clock that stands still.
HOST_LIFE: Final = timedelta(days=90)
_RENEW: Final = HOST_LIFE / 3  # before the certificate expires
_SKEW: Final = timedelta(days=1)  # for clients whose clock is slow
_MOST_NAME: Final = 64  # characters of a common name
_FILE: Final = "ca.pem"
_LOCK: Final = "ca.lock"
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO

_log = logging.getLogger(__name__)


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
    def validity(self) -> str:
        """The days from which and to which the certificate is valid."""
        certificate = self.certificate
        begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        return f"valid from {begins:%Y-%m-%d} to {ends:%Y-%m-%d}"

    def is_valid(self, now: datetime) -> bool:
        certificate = self.certificate
        return certificate.not_valid_before_utc <= now < certificate.not_valid_after_utc

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
    until = min(now + HOST_LIFE, authority.certificate.not_valid_after_utc)
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
        if authority.is_valid(now):
            self._told = False
            return
        error = UserError(
            f"the CA of [proxy] is {authority.validity}, and the clock says {now:%Y-%m-%d}: remove "
            "its ca.pem, restart the mirror, and give the new CA to the clients (mirror ca)"
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


def ensure_authority(
    directory: Path,
    name: str,
    clock: Callable[[], datetime] = _now,
    *,
    former: Path | None = None,
    move: bool = True,
) -> Authority:
    """Read the CA in ``directory``; on first use make one with the common name ``name``.

    A CA in the directory ``former`` moves to ``directory``; it is used where it is if it cannot
    move, or if ``move`` is False.

    Raises:
        UserError: the CA cannot be read or made, is not valid now, or others may read its key.
    """
    file = directory / _FILE
    try:
        if not file.exists():
            there = None if former is None else former / _FILE
            if there is not None and there.exists() and not move:
                file = there
            else:
                file = _settled(file, there, lambda: new_authority(name, clock()).pem())
        return _read(file, clock())
    except OSError as error:
        raise UserError(
            f"{error.filename or file}: {error.strerror}; the CA of [proxy] is kept there "
            "(ca_directory names another place)"
        ) from error


def _settled(file: Path, former: Path | None, make: Callable[[], bytes]) -> Path:
    """Move the CA to ``file``, or make a CA; return its file, which is ``former`` if need be."""
    try:
        file.parent.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        file.parent.mkdir(mode=0o700, exist_ok=True)
        with _locked(file.parent / _LOCK):
            if not file.exists():  # no other process made it in the meantime
                if former is not None and former.exists():
                    _move(former, file)
                else:
                    _write(file, make())
    except OSError as error:
        if former is None:
            raise
        reason = f"{error.filename or file}: {error.strerror}"
        _log.info("the CA of proxy mode stays in the cache directory, %s (%s)", former, reason)
        return former if former.exists() else _settled(former, None, make)
    return file


def _move(former: Path, file: Path) -> None:
    """Copy the CA, and remove the former file unless it is on another file system.

    The new file may be in a container, which loses it, while the former one is on a volume.
    """
    owner = former.stat()
    _write(file, former.read_bytes())
    for each in (file, file.parent):  # root may move the CA of another user
        with contextlib.suppress(OSError):
            os.chown(each, owner.st_uid, owner.st_gid)
    if former.is_symlink() or owner.st_dev != file.stat().st_dev:
        text = "the CA of proxy mode was copied from %s to %s; keep the latter in your backup"
    else:
        former.unlink()
        text = "the CA of proxy mode moved from %s to %s, since backups skip the cache directory"
    _log.warning(text, former, file)


@contextmanager
def _locked(file: Path) -> Iterator[None]:
    descriptor = os.open(file, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _write(file: Path, content: bytes) -> None:
    """Write a file atomically, readable only by its owner."""
    partial = file.with_name(f"{file.name}.{secrets.token_hex(4)}")
    descriptor = os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as out:
            out.write(content)
            out.flush()
            os.fsync(out.fileno())
        partial.rename(file)
    finally:
        partial.unlink(missing_ok=True)


def _read(file: Path, now: datetime) -> Authority:
    content = file.read_bytes()
    if file.stat().st_mode & _OTHERS:
        raise UserError(f"{file}: other users may read the key of the CA: chmod 600 {file}")
    try:
        authority = Authority(
            load_pem_private_key(content, None), tuple(load_pem_x509_certificates(content))
        )
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{file}: not a private key without password followed by its CA certificate "
            f"({error}); remove it, and the mirror makes a new CA"
        ) from error
    if authority.key.public_key() != authority.certificate.public_key():
        raise UserError(f"{file}: the key does not belong to the first certificate")
    if not authority.is_valid(now):
        raise UserError(
            f"{file}: the CA is {authority.validity}; remove it, and the mirror makes a new CA: "
            "give that one to the clients (mirror ca)"
        )
    return authority
