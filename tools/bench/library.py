"""Makes caches with very many objects in seconds.

A mirror pulls one small blob; its row and file are then copied under other digests, the file by
hard links.  The copies do not match their digests, which a hit does not verify.
"""

import contextlib
import hashlib
import os
import shutil
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from tools.bench.comparison import NotAvailableError
from tools.bench.corpus import REPOSITORY
from tools.bench.servers import FULL_SPEED, Mirror
from tools.bench.stage import Stage, running, warm

_BATCH = 10_000


@dataclass(frozen=True)
class FilledCache:
    """A stopped mirror, and the content of its cache."""

    mirror: Mirror
    paths: list[str]

    @property
    def count(self) -> int:
        return len(self.paths)

    def start_seconds(self) -> float:
        """Seconds from the command to the first response."""
        began = time.monotonic()
        with running(self.mirror):
            return time.monotonic() - began


class Library:
    """Makes caches with many objects."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage

    def filled(self, count: int) -> FilledCache:
        """A cache of ``count`` blobs.

        Raises:
            NotAvailableError: the schema of the index has changed.
        """
        upstream = self._stage.origin.door(FULL_SPEED).port
        mirror = Mirror(self._stage.new_directory(), upstream)
        with running(mirror):
            warm(mirror, [self._stage.corpus.tiny])
        model = self._stage.corpus.tiny.rpartition(":")[2]
        digests = [hashlib.sha256(str(at).encode()).hexdigest() for at in range(count)]
        try:
            _multiply(mirror.directory / "cache", model, digests)
        except (sqlite3.Error, OSError, LookupError) as error:
            raise NotAvailableError(f"cannot build an index of the mirror: {error}") from error
        paths = [f"/v2/{REPOSITORY}/blobs/sha256:{digest}" for digest in digests]
        return FilledCache(mirror, paths)


def _multiply(root: Path, model: str, digests: list[str]) -> None:
    with contextlib.closing(sqlite3.connect(root / "cache.db")) as database, database:
        database.row_factory = sqlite3.Row
        found = database.execute("SELECT * FROM Cache WHERE key LIKE ?", (f"%{model}",)).fetchone()
        row = dict(found)
        del row["rowid"]
        source = root / row["filename"]
        for at in range(256):
            (root / _renamed(row["filename"], model, f"{at:02x}")).parent.mkdir(exist_ok=True)
        statement = (
            f"INSERT INTO Cache ({', '.join(row)}) VALUES ({', '.join(f':{name}' for name in row)})"
        )
        remaining = iter(digests)
        while batch := list(islice(remaining, _BATCH)):
            database.executemany(statement, _copies(row, model, batch))
            names = [root / _renamed(row["filename"], model, digest) for digest in batch]
            shutil.copy2(source, names[0])  # ext4 allows 65,000 links to a file
            for name in names[1:]:
                os.link(names[0], name)


def _copies(row: dict[str, object], model: str, digests: list[str]) -> Iterator[dict[str, object]]:
    for digest in digests:
        yield row | {name: _renamed(str(row[name]), model, digest) for name in ("key", "filename")}


def _renamed(name: str, model: str, digest: str) -> str:
    """The name of a copy, in the directory for its digest."""
    return name.replace(f"/{model[:2]}/", f"/{digest[:2]}/").replace(model, digest)
