"""A cache of verified index entries: a hit on a cached entry does not read the index."""

import contextlib
import os
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from mirror.descriptor import Descriptor, FileRange
from mirror.store.local.index import ObjectEntry
from mirror.store.local.layout import ObjectKey, origin_of

_MOST: Final = 100_000  # about 500 bytes each


@dataclass(frozen=True, slots=True)
class OpenObject:
    """A stored object, whose file the caller closes; ``path`` at the time of opening."""

    content: FileRange
    media_type: str
    path: Path

    @property
    def origin(self) -> str:
        """The mark of a private object's upstream; empty for a public object."""
        return origin_of(self.path)

    def close(self) -> None:
        """Close the file."""
        self.content.close()


class EntryCache:
    """Entries by key; the oldest entry is dropped first."""

    def __init__(self) -> None:
        self._entries: OrderedDict[ObjectKey, ObjectEntry] = OrderedDict()

    def remember(self, entry: ObjectEntry) -> None:
        """Add an entry whose file has not changed since it was verified."""
        self._entries[entry.key] = entry
        if len(self._entries) > _MOST:
            self._entries.popitem(last=False)

    def forget(self, key: ObjectKey) -> None:
        """Drop the entry of an object that may have been removed."""
        self._entries.pop(key, None)

    def open(self, key: ObjectKey) -> OpenObject | None:
        """Open an object; None if its entry is not cached or its file has changed."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        with contextlib.suppress(OSError):
            fd = os.open(entry.path, os.O_RDONLY | os.O_CLOEXEC)
            there = os.fstat(fd)
            if (there.st_size, there.st_mtime_ns) == (entry.size, entry.modified):
                content = FileRange(Descriptor(fd), 0, entry.size)
                return OpenObject(content, entry.media_type, entry.path)
            os.close(fd)
        self.forget(key)
        return None
