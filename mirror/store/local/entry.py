"""Stored objects as values: rows of the index, and open objects."""

import json
import os
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from mirror.descriptor import Descriptor, FileRange
from mirror.store.local.layout import ObjectKey, origin_of


@dataclass(frozen=True, slots=True)
class ObjectEntry:
    """One stored object; ``size`` in bytes, ``media_type`` empty for blobs.

    ``modified`` is the modification time of the file (ns since 1970) when its bytes were
    verified.  A file with another modification time must be verified again.
    """

    key: ObjectKey
    path: Path
    size: int
    media_type: str = ""
    modified: int = 0

    def open(self) -> "OpenObject":
        """Open the file; the caller closes it.

        Raises:
            FileNotFoundError: the file is missing, or has another size.
            OSError: the file cannot be opened.
        """
        fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        there = os.fstat(fd)
        if there.st_size != self.size:
            os.close(fd)
            raise FileNotFoundError(f"{self.path} has another size")
        content = FileRange(Descriptor(fd), 0, self.size)
        return OpenObject(self, content, trusted=there.st_mtime_ns == self.modified)

    def hashed(self) -> int | None:
        """Hash the file; blocking.

        Returns:
            the file's modification time (ns since 1970) if its bytes hash to the digest; None if
            they do not, if the file cannot be read, or if it changes during the read.
        """
        try:
            with closing(self.open()) as opened, opened.content.descriptor as number:
                before = os.fstat(number).st_mtime_ns
                hasher = self.key.digest.hasher()
                for piece in opened.content.pieces():
                    hasher.update(piece)
                same = os.fstat(number).st_mtime_ns == before
        except OSError:
            return None
        return before if same and self.key.digest.matches(hasher) else None


@dataclass(frozen=True, slots=True)
class OpenObject:
    """An open object; ``trusted``: its file has not been written since it was verified."""

    entry: ObjectEntry
    content: FileRange
    trusted: bool

    @property
    def origin(self) -> str:
        """The mark of a private object's upstream; empty for a public object."""
        return origin_of(self.entry.path)

    def close(self) -> None:
        self.content.close()


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the index; ``size`` in bytes; the object ``takes`` that many on the disk."""

    number: int
    key: ObjectKey
    size: int
    takes: int


@dataclass(slots=True)
class Verification:
    """The result of hashing all objects; ``bytes`` counts them as the store does."""

    objects: int = 0
    bytes: int = 0
    damaged: list[ObjectKey] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Held:
    """A stored object for listings; ``used`` is the time of last use (Unix seconds).

    Listings read many at a time, so ``path`` and ``media_type`` are computed on access.
    """

    root: Path
    name: str
    size: int
    used: float
    description: str

    @property
    def path(self) -> Path:
        return self.root / self.name

    @property
    def media_type(self) -> str:
        """The media type of a manifest; empty for a blob."""
        return str(json.loads(self.description)["mediaType"])
