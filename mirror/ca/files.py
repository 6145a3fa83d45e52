"""The file with the CA's key and certificate: made once and shared by all processes.

One file holds both, so that a crash cannot leave a key and a certificate that do not match.  The
first process makes the file under a lock; the others read it.
"""

import fcntl
import os
import secrets
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509 import load_pem_x509_certificates

from mirror.ca.signing import Authority, new_authority
from mirror.user_error import UserError

_NAME: Final = "ca.pem"
_LOCK: Final = "ca.lock"
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO


def _now() -> datetime:
    return datetime.now(UTC)


def ensure_authority(directory: Path, name: str, clock: Callable[[], datetime] = _now) -> Authority:
    """Read the CA in ``directory``; on first use make one with the common name ``name``.

    Raises:
        UserError: the CA cannot be read or made, is not valid now, or others may read its key.
    """
    file = directory / _NAME
    try:
        directory.parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # the cache directory
        directory.mkdir(mode=0o700, exist_ok=True)
        if not file.exists():
            with _locked(directory / _LOCK):
                if not file.exists():  # no other process made it in the meantime
                    _write(file, new_authority(name, clock()).pem())
        return _read(file, clock())
    except OSError as error:
        raise UserError(
            f"{error.filename or file}: {error.strerror}; the CA of [proxy] is kept there "
            "(ca_directory names another place)"
        ) from error


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
    if not authority.fits:
        raise UserError(f"{file}: the key does not belong to the first certificate")
    if not authority.valid_from <= now < authority.valid_until:
        raise UserError(
            f"{file}: the CA is valid from {authority.valid_from:%Y-%m-%d} to "
            f"{authority.valid_until:%Y-%m-%d}; remove it, and the mirror makes a new CA: give "
            "that one to the clients (mirror ca)"
        )
    return authority
