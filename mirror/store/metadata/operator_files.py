"""What operators change while the mirror runs, as files of the cache directory.

All processes read them: the blocks set by command, and the images kept by the status page (those
of ``[[keep]]`` are apart).  Files of their own: records in a database are dropped for lack of
room, or lost with a damaged database.  Written beside and renamed, so that a crash leaves the
former or the new list.  All methods block: call them in a thread.
"""

import contextlib
import fcntl
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

from mirror.policy.blocks import Block
from mirror.user_error import UserError

_SUFFIX: Final = ".new"
#: How long the removal of a block is remembered for replicas that are down.
_LIFTED_SECONDS: Final = 90 * 86_400.0
#: A change of a record is later than the record, whatever the clock says.
_STEP_SECONDS: Final = 0.001

Stamp = tuple[int, int, int]


class BlockFile:
    """The durable list of blocks, shared by all processes; ``clock`` gives Unix seconds."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self._path = path
        self._clock = clock

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
        """Return the blocks in force; none if there is no file.

        Raises:
            OSError: the file cannot be read, or is damaged.
        """
        return tuple(block for block in self.records() if not block.lifted)

    def records(self) -> tuple[Block, ...]:
        """Return the blocks in force, and those that were lifted lately.

        Raises:
            OSError: the file cannot be read, or is damaged.
        """
        try:
            document = json.loads(self._path.read_text(encoding="utf-8"))
            found = (*document["blocks"], *document.get("lifted", ()))
            return tuple(map(Block.of_document, found))
        except FileNotFoundError:
            return ()
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            text = f"{self._path} is damaged ({error}); restore or remove it"
            raise OSError(None, text) from error

    def change(self, change: Callable[[tuple[Block, ...]], Iterable[Block]]) -> None:
        """Replace the blocks in force by what ``change`` makes of them; one process at a time.

        Raises:
            OSError: the file cannot be read or written; then nothing has changed.
        """
        with _locked(self._path.parent) as directory:
            former = {block.target: block for block in self.records()}
            wanted = change(tuple(block for block in former.values() if not block.lifted))
            blocks = {each.target: _after(former.get(each.target), each) for each in wanted}
            now = self._clock()
            gone = {
                each.target: _after(each, Block(each.target, since=now, lifted=True))
                for each in former.values()
                if each.target not in blocks and not each.lifted
            }
            self._write({**former, **gone, **blocks}.values(), directory)

    def merge(self, records: Iterable[Block]) -> None:
        """Add records of another replica, of which the later one of each target holds.

        Raises:
            OSError: the file cannot be read or written; then nothing has changed.
        """
        with _locked(self._path.parent) as directory:
            known = {block.target: block for block in self.records()}
            for each in records:
                former = known.get(each.target)
                known[each.target] = each if former is None else former.merged(each)
            self._write(known.values(), directory)

    def _write(self, records: Iterable[Block], directory: int) -> None:
        oldest = self._clock() - _LIFTED_SECONDS
        blocks, lifted = list[object](), list[object]()
        for each in records:
            if not each.lifted:
                blocks.append(each.document())
            elif each.since > oldest:
                lifted.append(each.document())
        text = json.dumps({"blocks": blocks, "lifted": lifted}, indent=2) + "\n"
        new = self._path.with_suffix(_SUFFIX)
        with new.open("w", encoding="utf-8") as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        new.replace(self._path)
        os.fsync(directory)


def _after(former: Block | None, block: Block) -> Block:
    """Return a record with a time after that of the former one, if it differs from it."""
    if former is None or block == former:
        return block
    return replace(block, since=max(block.since, former.since + _STEP_SECONDS))


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
        with _locked(self._file.parent):
            self.reread()
            names = self.known | {name} if keep else self.known - {name}
            if len(names) > _MOST:
                raise UserError(f"{_MOST} images are kept already: use [[keep]] with a glob")
            fresh = self._file.with_suffix(".new")
            fresh.write_text("".join(f"{each}\n" for each in sorted(names)), "utf-8")
            fresh.replace(self._file)


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[int]:
    """Hold the lock of a directory, and yield its descriptor."""
    number = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(number, fcntl.LOCK_EX)
        yield number
    finally:
        os.close(number)
