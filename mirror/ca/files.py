"""Where the authority's key and certificate are kept: made once, the same for every process.

One file holds both, so that they cannot be of two minds after a crash; whoever comes first makes
it, under a lock, and the others read what is there.
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

from mirror.ca.errors import AuthorityError
from mirror.ca.signing import Authority, new_authority

_NAME: Final = "ca.pem"
_LOCK: Final = "ca.lock"
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO


def _now() -> datetime:
    return datetime.now(UTC)


def ensure_authority(directory: Path, name: str, clock: Callable[[], datetime] = _now) -> Authority:
    """The authority kept in ``directory``, made on first use; ``name`` is what it is called then.

    Raises:
        AuthorityError: it can neither be read nor made.
    """
    file = directory / _NAME
    try:
        directory.parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # the cache directory
        directory.mkdir(mode=0o700, exist_ok=True)
        if not file.exists():
            with _locked(directory / _LOCK):
                if not file.exists():  # nobody was quicker
                    _write(file, new_authority(name, clock()).pem())
        return _read(file, clock())
    except OSError as error:
        raise AuthorityError(
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
    """Write a file whole or not at all, for the owner's eyes only."""
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
        raise AuthorityError(f"{file}: others may read the key of the CA in it: chmod 600 {file}")
    try:
        authority = Authority(
            load_pem_private_key(content, None), tuple(load_pem_x509_certificates(content))
        )
    except (ValueError, TypeError) as error:
        raise AuthorityError(
            f"{file}: not a private key without password followed by its CA certificate "
            f"({error}); remove it, and another CA is made"
        ) from error
    if not authority.fits:
        raise AuthorityError(f"{file}: the key is not the one of the first certificate there")
    if not authority.valid_from <= now < authority.valid_until:
        raise AuthorityError(
            f"{file}: the CA is valid from {authority.valid_from:%Y-%m-%d} to "
            f"{authority.valid_until:%Y-%m-%d}; remove it, and another one is made, which clients "
            "have to be told of (mirror ca)"
        )
    return authority
