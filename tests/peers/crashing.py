"""A mirror to be killed by the hundred, and the eye that looks at what it left.

Importing the program costs more than serving for a moment.  So one child, the nursery, imports it
and forks a server whenever it is told; what is killed is that server, a process like any other.
Between the steps of an adoption or an eviction lie microseconds, which random kills would miss: in
the server (here, not in the program) a short sleep stands before and after every system call that
gives a file a name or takes one away, so that kills land between the steps.
"""

import asyncio
import contextlib
import hashlib
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from mirror.store.local.disk_usage import in_blocks
from tests.waiting import LIMIT_SECONDS

_REPOSITORY = Path(__file__).parents[2]
_STRETCHED = ("link", "rename", "unlink", "remove")
_STRETCH_SECONDS = 0.003


class Nursery:
    """Starts servers of one configuration, one at a time, and kills them by their pid."""

    def __init__(self, tree: Mapping[str, Any], log: Path) -> None:
        command = [sys.executable, "-m", "tests.peers.crashing", json.dumps(tree)]
        # No coverage: time is what this is about, and who is killed reports nothing.
        environment = {k: v for k, v in os.environ.items() if not k.startswith("COV")}
        with log.open("wb") as errors:
            self._child = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                cwd=_REPOSITORY,
                env=environment,
            )
        self._server: int | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """The nursery kills its last server when nobody talks to it any more."""
        self._child.communicate(timeout=LIMIT_SECONDS)

    def start(self, seed: int) -> None:
        """Fork a server; ``seed`` is that of its sleeps."""
        self._server = int(self._told(f"start {seed}"))

    def kill(self, after: float = 0) -> None:
        """SIGKILL ``after`` so many seconds, and wait until the server is gone.

        Blocks: in a thread of its own it comes at the moment that was drawn, and not when the
        event loop of the clients has nothing else to do.
        """
        time.sleep(after)
        assert self._server is not None
        os.kill(self._server, signal.SIGKILL)  # nobody else can have the pid before "reap"
        self._server = None
        code = int(self._told("reap"))
        assert code == -signal.SIGKILL, f"the server ended by itself with {code}, see its log"

    def _told(self, order: str) -> str:
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.write(order + "\n")
        self._child.stdin.flush()
        answer = self._child.stdout.readline()
        assert answer, "the nursery is gone, see its log"
        return answer


# What a dead mirror left.  Read with sqlite3 and os alone: it must not believe what it tests.


def under_way(root: Path) -> Counter[str]:
    """What was going on when the mirror was killed, by what it left in ``root``."""
    found = Counter(path.name.partition(".")[0] for path in _files(root / "pending"))
    found["fill"] = sum(path.stat().st_size > 0 for path in _files(root / "partial"))
    return +found


def disagreements(root: Path, max_bytes: int) -> list[str]:
    """What is wrong in a cache directory that was repaired and is at rest; a line each."""
    rows = _rows(root)
    files = {
        str(path.relative_to(root)): path.stat().st_size
        for kind in ("blobs", "manifests")
        for path in _files(root / kind)
    }
    partial = {path.name: path.stat().st_size for path in _files(root / "partial")}
    places = (root, *root.rglob("*"))
    used = sum(place.stat(follow_symlinks=False).st_blocks * 512 for place in places)
    return [
        *(f"{path.name} is still pending" for path in _files(root / "pending")),
        *(f"{name} is a file without a row" for name in files.keys() - rows.keys()),
        *(f"{name} is a row without a file" for name in rows.keys() - files.keys()),
        *(
            f"{name} has {files[name]} bytes, its row says {rows[name]}"
            for name in files.keys() & rows.keys()
            if files[name] != rows[name]
        ),
        *(f"partial/{name} is no fill" for name in partial if not _names_an_object(name)),
        *([f"{used} bytes of {max_bytes} are used"] if used > max_bytes else []),
    ]


def corrupt(root: Path) -> list[str]:
    """The stored files that do not hash to their names."""
    return [
        f"{path} is corrupt"
        for kind in ("blobs", "manifests")
        for path in _files(root / kind)
        if hashlib.sha256(path.read_bytes()).hexdigest() != path.name.partition(".")[0]
    ]


def _rows(root: Path) -> dict[str, int]:
    """The size of every file of which the index knows, by its name below the root."""
    uri = f"file:{root / 'cache.db'}?mode=ro"
    with contextlib.closing(sqlite3.connect(uri, uri=True)) as database:
        rows = database.execute("SELECT key, filename, size, value FROM Cache").fetchall()
        figures = dict(database.execute("SELECT key, value FROM Settings").fetchall())
    assert (figures["count"], figures["size"]) == (len(rows), sum(size for _, _, size, _ in rows))
    for key, name, size, described in rows:
        kind, algorithm, hexadecimal = key.split(".")
        assert name.startswith(f"{kind}/{algorithm}/{hexadecimal[:2]}/{hexadecimal}."), (key, name)
        assert in_blocks(json.loads(described)["size"], 4096) == size
    return {name: json.loads(described)["size"] for _, name, _, described in rows}


def _files(directory: Path) -> Iterator[Path]:
    return (Path(at, name) for at, _, names in os.walk(directory) for name in names)


def _names_an_object(name: str) -> bool:
    kind, *digest = name.split(".")
    return kind in {"blobs", "manifests"} and len(digest) == 2


# The nursery itself.


def main() -> None:
    """Obey: ``start <seed>`` answers with a pid, ``reap`` with the exit code."""
    # In here, and not for whoever only wants the other side of this module.
    from mirror.config import load  # noqa: PLC0415
    from mirror.server import serving  # noqa: PLC0415

    config = load(None, json.loads(sys.argv[1]))

    async def serve() -> None:
        async with serving(config, asyncio.Event()):
            await asyncio.Event().wait()

    server: int | None = None
    for line in sys.stdin:
        order, *arguments = line.split()
        if order == "start":
            server = _forked(serve, int(arguments[0]))
            print(server, flush=True)
        elif server is not None:
            _, status = os.waitpid(server, 0)
            server = None
            print(os.waitstatus_to_exitcode(status), flush=True)
    if server is not None:
        os.kill(server, signal.SIGKILL)
        os.waitpid(server, 0)


def _forked(serve: Callable[[], Any], seed: int) -> int:
    if pid := os.fork():
        return pid
    try:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(2, 1)
        _stretch(random.Random(seed))
        asyncio.run(serve())
    finally:
        os._exit(1)


def _stretch(rng: random.Random) -> None:
    def slowly(call: Callable[..., Any]) -> Callable[..., Any]:
        def slow(*args: Any, **kwargs: Any) -> Any:
            time.sleep(rng.uniform(0, _STRETCH_SECONDS))
            result = call(*args, **kwargs)
            time.sleep(rng.uniform(0, _STRETCH_SECONDS))
            return result

        return slow

    for name in _STRETCHED:
        setattr(os, name, slowly(getattr(os, name)))


if __name__ == "__main__":
    main()
