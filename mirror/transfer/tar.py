"""The headers of a tar file, read one after the other from a stream that cannot go back.

Knows blocks, names and sizes (POSIX.1-2001 pax, GNU long names).  Must not know what the files are
for, and never takes more than :data:`MAX_EXTENSION_BYTES` for what is said about a file.  The
standard library's reader holds as much of that in memory as the file says there is.
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


class DamagedTar(ValueError):  # noqa: N818  # says what it is
    """Bytes that are no tar file, or not the whole of one."""


@dataclass(frozen=True, slots=True)
class Member:
    """A file: its name, its ``size`` in bytes, and whether it is a plain file or a directory."""

    name: str
    size: int
    is_file: bool
    is_directory: bool


def padding(size: int) -> int:
    """How many bytes follow a file of ``size`` bytes up to the next block."""
    return -size % BLOCK


def header(name: str, size: int) -> bytes:
    """The header of a plain file that anybody may read, the same whenever it is written."""
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, 0o644
    return member.tobuf(tarfile.PAX_FORMAT)


def read_member(read: Callable[[int], bytes]) -> Member | None:
    """Read the next header; ``read`` gives as many bytes as it is asked for, fewer at the end.

    Returns:
        the file whose bytes come next, None at the end.

    Raises:
        DamagedTar: the bytes are none, or end too early.
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
            return Member(name, size, plain and not name.endswith("/"), found.isdir())


def _header(read: Callable[[int], bytes]) -> tarfile.TarInfo | None:
    block = read(BLOCK)
    if len(block) < BLOCK:
        raise DamagedTar("it ends before its end")
    if not any(block):
        return None
    try:
        found = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        raise DamagedTar(str(error)) from error
    if not 0 <= found.size <= _MAX_SIZE:
        raise DamagedTar("a file of impossible size")
    return found


def _extension(found: tarfile.TarInfo, read: Callable[[int], bytes]) -> bytes:
    if found.size > MAX_EXTENSION_BYTES:
        raise DamagedTar("a name longer than any file has")
    data = read(found.size + padding(found.size))
    if len(data) < found.size + padding(found.size):
        raise DamagedTar("it ends in the middle of a name")
    return data[: found.size]


def _parse_pax(data: bytes) -> dict[str, str]:
    """Records: their length, ``key=value``, and the end of the line."""
    records: dict[str, str] = {}
    while data.strip(b"\0"):
        digits, space, _ = data[:32].partition(b" ")
        length = int(digits) if space and digits.isdigit() else 0
        record = data[len(digits) + 1 : length]
        if not record.endswith(b"\n") or length > len(data):
            raise DamagedTar("a pax header that is none")
        key, _, value = record[:-1].partition(b"=")
        records[key.decode(errors="replace")] = value.decode(errors="surrogateescape")
        data = data[length:]
    return records


def _size(pax: dict[str, str], size: int) -> int:
    """Files of 8 GiB and more have their size in a pax header (or in base 256, read already)."""
    text = pax.get("size", "")
    if not text:
        return size
    if not text.isascii() or not text.isdigit() or int(text) > _MAX_SIZE:
        raise DamagedTar("a file of impossible size")
    return int(text)
