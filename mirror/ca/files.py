"""The file with the CA's key and certificate: made once and shared by all processes.

One file holds both, so that a crash cannot leave a key and a certificate that do not match.  The
first process makes the file under a lock; the others read it.

Versions up to 0.2.0 kept the file in the cache directory, which backup programs skip.
"""

import contextlib
import fcntl
import logging
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

_log = logging.getLogger(__name__)


def _now() -> datetime:
    return datetime.now(UTC)


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
    file = directory / _NAME
    try:
        if not file.exists():
            there = None if former is None else former / _NAME
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
    if not authority.fits:
        raise UserError(f"{file}: the key does not belong to the first certificate")
    if not authority.valid_from <= now < authority.valid_until:
        raise UserError(
            f"{file}: the CA is valid from {authority.valid_from:%Y-%m-%d} to "
            f"{authority.valid_until:%Y-%m-%d}; remove it, and the mirror makes a new CA: give "
            "that one to the clients (mirror ca)"
        )
    return authority
