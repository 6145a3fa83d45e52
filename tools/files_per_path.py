"""`python -m tools.files_per_path`: how many files of `mirror/` one must read to follow a request.

Runs a mirror in this process and counts, for each path through it, the files whose functions
`sys.setprofile` saw called.  `--files` lists them.  Periodic tasks run beside the requests and may
add a file or two; the smallest of several runs is printed where a path can be repeated.
"""

import argparse
import asyncio
import subprocess
import sys
import tempfile
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Final

import mirror
from mirror.oci.digest import Digest
from tests.fakes import FakeRegistry, image, random_bytes
from tests.running import Mirror, running

_PACKAGE: Final = Path(mirror.__file__).parent
_FUNCTION: Final = 0x1  # CO_OPTIMIZED: neither a module nor the body of a class
_REPOSITORY: Final = "library/busybox"
_RUNS: Final = 5
_BLOB_BYTES: Final = 1_000_000  # more than a response that is repeated from memory
_AIMS: Final = {
    "known blob hit": 12,
    "first blob hit": 15,
    "blob miss": 25,
    "tag revalidation": 20,
    "mirror rm": 18,
}


class Tracer:
    """Collects the files of `mirror/` whose functions are called while it is told to."""

    def __init__(self) -> None:
        self._files: set[str] | None = None

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        if self._files is None or event != "call":
            return
        if frame.f_code.co_flags & _FUNCTION:
            self._files.add(frame.f_code.co_filename)

    @contextmanager
    def collecting(self) -> Iterator[set[Path]]:
        """Yield a set that holds the files when the context is left."""
        found: set[Path] = set()
        self._files = files = set[str]()
        try:
            yield found
        finally:
            self._files = None
            paths = {Path(name) for name in files}
            found |= {path.relative_to(_PACKAGE) for path in paths if _PACKAGE in path.parents}


async def _measured(tracer: Tracer, directory: Path) -> dict[str, set[Path]]:
    async with FakeRegistry() as upstream:
        tags = {"max_age": "10ms"}
        async with running(directory, {"docker.io": upstream.url}, tags=tags) as mirror:
            return await _requests(tracer, directory, upstream, mirror)


async def _requests(
    tracer: Tracer, directory: Path, upstream: FakeRegistry, mirror: Mirror
) -> dict[str, set[Path]]:
    names = [f"{_REPOSITORY}{number}" for number in range(_RUNS)]
    blobs = [random_bytes(_BLOB_BYTES, number) for number in range(_RUNS)]
    images = [image(blob) for blob in blobs]
    for name, each in zip(names, images, strict=True):
        upstream.add_image(name, each, "1")
    layers = [
        f"/v2/{name}/blobs/{Digest.of(blob)}" for name, blob in zip(names, blobs, strict=True)
    ]
    manifests = [f"/v2/{name}/manifests/1" for name in names]

    async def smallest(ask: Callable[[str], Awaitable[Any]], paths: list[str]) -> set[Path]:
        runs = []
        for path in paths:
            await asyncio.sleep(0.1)  # what the request before has left to do is over
            with tracer.collecting() as files:
                await ask(path)
                await asyncio.sleep(0.02)
            runs.append(files)
        return min(runs, key=len)

    result = {"blob miss": await smallest(mirror.get, layers)}
    result["first blob hit"] = await smallest(mirror.get, layers)
    result["known blob hit"] = await smallest(mirror.get, layers)
    for path in manifests:
        await mirror.get(path)
    result["tag revalidation"] = await smallest(mirror.get, manifests)

    runs = []
    for name in names:
        with tracer.collecting() as files:
            inside = await asyncio.to_thread(_files_of_command, "rm", f"{name}:1", directory)
        runs.append(files | inside)
    result["mirror rm"] = min(runs, key=len)
    return result


def _files_of_command(command: str, image_name: str, directory: Path) -> set[Path]:
    """Run a command of `mirror` in a process of its own, which traces itself."""
    program = [sys.executable, "-m", "tools.files_per_path", "--command"]
    arguments = [command, image_name, "--cache-dir", str(directory)]
    done = subprocess.run(
        [*program, *arguments], capture_output=True, text=True, timeout=120, check=True
    )
    return {Path(line) for line in done.stderr.splitlines()}


def _command(tracer: Tracer, arguments: list[str]) -> None:
    from mirror.cli.root import app  # noqa: PLC0415  # the process with the server has no use for it

    with tracer.collecting() as files:
        app(arguments, standalone_mode=False)
    print(*sorted(files), sep="\n", file=sys.stderr)


def main() -> None:
    """Print the table, and with ``--files`` the files of each path."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--files", action="store_true", help="list the files of each path")
    parser.add_argument("--command", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    options = parser.parse_args()
    tracer = Tracer()
    threading.setprofile(tracer)
    sys.setprofile(tracer)
    if options.command:
        _command(tracer, options.command)
        return
    with tempfile.TemporaryDirectory(prefix="mirror-files-") as directory:
        result = asyncio.run(_measured(tracer, Path(directory)))
    sys.setprofile(None)
    for path, files in result.items():
        print(f"{path:18}{len(files):4} files  (aim: {_AIMS[path]})")
        if options.files:
            print(*(f"    {file}" for file in sorted(files)), sep="\n")


if __name__ == "__main__":
    main()
