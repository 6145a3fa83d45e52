"""The images that an operator keeps by the status page, in a file of the cache directory.

One full name per line; all processes read the file.  The images of ``[[keep]]`` are apart.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from mirror.user_error import UserError

_MOST: Final = 1_000  # images


class KeepList:
    """The list; ``known`` are the full names of the images when it was read last."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._read = 0, 0
        self.known: frozenset[str] = frozenset()

    def reread(self) -> bool:
        """Read the file if it has changed, and return whether it has.

        If it cannot be read, the last known list holds.
        """
        before = self._read
        try:
            now = self._file.stat()
            if (now.st_mtime_ns, now.st_ino) != before:
                self.known = frozenset(self._file.read_text("utf-8").split())
                self._read = now.st_mtime_ns, now.st_ino
        except FileNotFoundError:
            self.known, self._read = frozenset(), (0, 0)
        except (OSError, ValueError):
            return False
        return self._read != before

    def change(self, name: str, *, keep: bool) -> None:
        """Add or remove an image.

        Raises:
            UserError: the list is full.
            OSError: the file cannot be written.
        """
        with self._locked():
            self.reread()
            names = self.known | {name} if keep else self.known - {name}
            if len(names) > _MOST:
                raise UserError(f"{_MOST} images are kept already: use [[keep]] with a glob")
            fresh = self._file.with_suffix(".new")
            fresh.write_text("".join(f"{each}\n" for each in sorted(names)), "utf-8")
            fresh.replace(self._file)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        directory = os.open(self._file.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(directory, fcntl.LOCK_EX)
            yield
        finally:
            os.close(directory)
