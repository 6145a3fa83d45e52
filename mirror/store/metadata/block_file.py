"""The blocks that operators have set by command: a file in the cache directory.

A file of its own: records in a database are dropped for lack of room, or lost with a damaged
database.  Written beside and renamed, so that a crash leaves the former or the new list.
All methods block: call them in a thread.
"""

import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final

from mirror.policy.blocks import Block

_SUFFIX: Final = ".new"

Stamp = tuple[int, int, int]


class BlockFile:
    """The durable list of blocks, shared by all processes."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def stamp(self) -> Stamp | None:
        """Return a value that changes with the file; None if there is no file.

        Raises:
            OSError: the directory cannot be read.
        """
        try:
            found = self._path.stat()
        except FileNotFoundError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size

    def read(self) -> tuple[Block, ...]:
        """Return the blocks; none if there is no file.

        Raises:
            OSError: the file cannot be read, or is damaged.
        """
        try:
            document = json.loads(self._path.read_text(encoding="utf-8"))
            return tuple(map(Block.of_document, document["blocks"]))
        except FileNotFoundError:
            return ()
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            text = f"{self._path} is damaged ({error}); restore or remove it"
            raise OSError(None, text) from error

    def change(self, change: Callable[[tuple[Block, ...]], Iterable[Block]]) -> None:
        """Replace the list by what ``change`` makes of it; one process at a time.

        Raises:
            OSError: the file cannot be read or written; then nothing has changed.
        """
        with self._alone():
            blocks = [block.document() for block in change(self.read())]
            text = json.dumps({"blocks": blocks}, indent=2) + "\n"
            new = self._path.with_suffix(_SUFFIX)
            with new.open("w", encoding="utf-8") as file:
                os.fchmod(file.fileno(), 0o600)
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            new.replace(self._path)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the lock of the directory; sync the directory at the end."""
        directory = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(directory, fcntl.LOCK_EX)
            yield
            os.fsync(directory)
        finally:
            os.close(directory)
