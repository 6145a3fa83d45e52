"""What was found out about objects before: a hit on one of them costs the index nothing."""

import contextlib
import os
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mirror.descriptor import Descriptor
from mirror.store.local.index import ObjectEntry
from mirror.store.local.layout import ObjectKey, origin_of

_MOST: Final = 100_000  # some 500 bytes each


@dataclass(frozen=True, slots=True)
class OpenObject:
    """A stored object with an open descriptor, the caller's to close; ``size`` in bytes.

    ``path`` is where it was when it was opened.
    """

    fd: Descriptor
    size: int
    media_type: str
    path: Path

    @property
    def origin(self) -> str:
        """Marks the upstream that a private object is from."""
        return origin_of(self.path)

    def close(self) -> None:
        """Close the descriptor."""
        self.fd.close()


class EntryCache:
    """Entries by key, those remembered longest ago going first."""

    def __init__(self) -> None:
        self._entries: OrderedDict[ObjectKey, ObjectEntry] = OrderedDict()

    def remember(self, entry: ObjectEntry) -> None:
        """Somebody looked it up, and its file is as it was verified."""
        self._entries[entry.key] = entry
        if len(self._entries) > _MOST:
            self._entries.popitem(last=False)

    def forget(self, key: ObjectKey) -> None:
        """It may have gone."""
        self._entries.pop(key, None)

    def open(self, key: ObjectKey) -> OpenObject | None:
        """Open an object, None where that takes a look into the index."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        with contextlib.suppress(OSError):
            fd = os.open(entry.path, os.O_RDONLY | os.O_CLOEXEC)
            there = os.fstat(fd)
            if (there.st_size, there.st_mtime_ns) == (entry.size, entry.modified):
                return OpenObject(Descriptor(fd), entry.size, entry.media_type, entry.path)
            os.close(fd)
        self.forget(key)
        return None
