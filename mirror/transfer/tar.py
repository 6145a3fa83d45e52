"""Reads the headers of a tar file, one after another, from a stream that cannot seek.

Knows blocks, names and sizes (POSIX.1-2001 pax, GNU long names).  Must not know the use of the
files.  Reads at most :data:`MAX_EXTENSION_BYTES` of metadata for a file; the standard library reads
as much of it into memory as the header claims.
"""

import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

BLOCK: Final = 512
MAX_EXTENSION_BYTES: Final = 256 * 1024
_GNU_LONG: Final = frozenset({tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK})
_PAX: Final = frozenset({tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE})
_MAX_SIZE: Final = 2**63 - 1


class DamagedTar(ValueError):  # noqa: N818  # names the state
    """Not a tar file, or not a complete one."""


@dataclass(frozen=True, slots=True)
class Member:
    """A file: its name, its ``size`` in bytes, and whether it is a regular file."""

    name: str
    size: int
    is_file: bool


def padding(size: int) -> int:
    """Number of bytes between a file of ``size`` bytes and the next block."""
    return -size % BLOCK


def header(name: str, size: int) -> bytes:
    """The header of a regular file with mode 0644 and time 0: the output is reproducible."""
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, 0o644
    return member.tobuf(tarfile.PAX_FORMAT)


def read_member(read: Callable[[int], bytes]) -> Member | None:
    """Read the next header; ``read`` returns as many bytes as asked for, fewer at the end.

    Returns:
        the file whose content follows, None at the end.

    Raises:
        DamagedTar: the header is invalid or truncated.
    """
    pax: dict[str, str] = {}
    long_name = ""
    while True:
        found = _header(read)
        if found is None:
            return None
        if found.type in _GNU_LONG:
            text = _extension(found, read).rstrip(b"\0").decode(errors="surrogateescape")
            long_name = text if found.type == tarfile.GNUTYPE_LONGNAME else long_name
        elif found.type in _PAX:
            records = _parse_pax(_extension(found, read))
            pax |= {} if found.type == tarfile.XGLTYPE else records
        else:
            name = pax.get("path") or long_name or found.name
            plain = found.type in {tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE}
            size = _size(pax, found.size) if plain else 0
            return Member(name, size, plain and not name.endswith("/"))


def _header(read: Callable[[int], bytes]) -> tarfile.TarInfo | None:
    block = read(BLOCK)
    if len(block) < BLOCK:
        raise DamagedTar("truncated before its end")
    if not any(block):
        return None
    try:
        found = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        raise DamagedTar(str(error)) from error
    if not 0 <= found.size <= _MAX_SIZE:
        raise DamagedTar("a file has an invalid size")
    return found


def _extension(found: tarfile.TarInfo, read: Callable[[int], bytes]) -> bytes:
    if found.size > MAX_EXTENSION_BYTES:
        raise DamagedTar("a file name is too long")
    data = read(found.size + padding(found.size))
    if len(data) < found.size + padding(found.size):
        raise DamagedTar("truncated in the middle of a name")
    return data[: found.size]


def _parse_pax(data: bytes) -> dict[str, str]:
    """Parse lines of the form ``LENGTH key=value``."""
    records: dict[str, str] = {}
    while data.strip(b"\0"):
        digits, space, _ = data[:32].partition(b" ")
        length = int(digits) if space and digits.isdigit() else 0
        record = data[len(digits) + 1 : length]
        if not record.endswith(b"\n") or length > len(data):
            raise DamagedTar("a pax header is invalid")
        key, _, value = record[:-1].partition(b"=")
        records[key.decode(errors="replace")] = value.decode(errors="surrogateescape")
        data = data[length:]
    return records


def _size(pax: dict[str, str], size: int) -> int:
    """The size from the pax header, which files of 8 GiB and more may have, else ``size``."""
    text = pax.get("size", "")
    if not text:
        return size
    if not text.isascii() or not text.isdigit() or int(text) > _MAX_SIZE:
        raise DamagedTar("a file has an invalid size")
    return int(text)
