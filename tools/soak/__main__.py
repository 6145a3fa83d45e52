"""The soak: ``python -m tools.soak [--minutes 10] [--clients 300] [--seed N]``.

Hundreds of clients on a mirror that evicts all the time and whose upstream fails one request in
five.  Not part of the test suite, because it is slow.  Exits 1 with the reasons if a byte was
wrong, a response unexpected, or if memory, descriptors, downloads or disk usage exceeded their
limits.
"""

import argparse
import asyncio
import json
import os
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.peers.mirror import MirrorProcess
from tests.peers.process import Process
from tools.soak.catalogue import MIB, Catalogue
from tools.soak.clients import Counts, clients_at_work
from tools.soak.watch import Sample, open_files, reader, sample

_SAMPLE_SECONDS = 5.0
_LINE_SECONDS = 30.0
_WARM_SECONDS = 20.0
_QUIET_SECONDS = 15.0
_QUIET_LIMIT_SECONDS = 45.0
_FLAT_RSS = 1.10
_FLAT_DESCRIPTORS = 10
_EXTRA = """
[tags]
max_age = "2s"
negative_max_age = "1s"
[fetch]
idle_timeout = "2s"
first_byte_timeout = "2s"
"""


@dataclass
class Soak:
    """One run."""

    mirror: MirrorProcess
    catalogue: Catalogue
    seed: int
    clients: int
    pause: float
    tally: Counts = field(default_factory=Counts)
    samples: list[Sample] = field(default_factory=list)
    max_bytes: int = 0

    async def run(self, seconds: float) -> list[str]:
        """Warm up, soak, wait until idle; returns the reasons of a failure."""
        await self._crowd_for(_WARM_SECONDS, self.seed + 1)
        before = await self._quiet()
        open_before = open_files(self.mirror.pid)
        self.samples.clear()
        print(f"idle after warming up: {_line(before)}", flush=True)
        await self._crowd_for(seconds, self.seed + 2)
        during = list(self.samples)
        after = await self._quiet()
        print(f"idle again:            {_line(after)}", flush=True)
        _table(self.tally, during)
        print(f"open before: {dict(open_before)}\nopen after:  {dict(open_files(self.mirror.pid))}")
        return self._verdict(before, during, after)

    async def _crowd_for(self, seconds: float, seed: int) -> None:
        ends = time.monotonic() + seconds
        who = (self.clients, self.pause, seed)
        async with clients_at_work(self.mirror.url, self.catalogue, self.tally, *who):
            while time.monotonic() < ends:
                await asyncio.sleep(_SAMPLE_SECONDS)
                await self._look(seconds - (ends - time.monotonic()))

    async def _look(self, seconds: float) -> Sample:
        seen = await asyncio.to_thread(sample, self.mirror, seconds)
        self.samples.append(seen)
        if seconds % _LINE_SECONDS < _SAMPLE_SECONDS:
            print(f"{_line(seen)}  {sum(self.tally.results.values())} requests", flush=True)
        return seen

    async def _quiet(self) -> Sample:
        """Wait until no request is active and idle connections have closed."""
        began = time.monotonic()
        while True:
            await asyncio.sleep(_QUIET_SECONDS)
            seen = await asyncio.to_thread(sample, self.mirror, 0.0)
            busy = _under_way(seen)
            if not busy or time.monotonic() - began > _QUIET_LIMIT_SECONDS:
                return seen

    def _verdict(self, before: Sample, during: Sequence[Sample], after: Sample) -> list[str]:
        log = self.mirror.output()
        kept = {
            kind: count
            for kind, count in open_files(self.mirror.pid).items()
            if kind.startswith(("blobs", "manifests", "partial"))
        }
        grown, more = reader(during), after.descriptors - before.descriptors
        evicted = after.figure("mirror_evictions_total") - before.figure("mirror_evictions_total")
        checks = {
            f"{len(self.tally.wrong)} times wrong bytes: {self.tally.wrong[:5]}": self.tally.wrong,
            f"{len(self.tally.unexpected)} unexpected answers: {self.tally.unexpected[:5]}": (
                self.tally.unexpected
            ),
            f"still active: {_under_way(after)}": _under_way(after),
            f"files of the cache still open: {kept}": kept,
            f"{more:+d} descriptors": abs(more) > _FLAT_DESCRIPTORS,
            f"RSS grew to {grown:.2f} times what it was": grown > _FLAT_RSS,
            f"{after.threads - before.threads:+d} threads": after.threads > before.threads + 16,
            f"{after.disk} bytes on disk, {self.max_bytes} allowed": after.disk > self.max_bytes,
            "nothing was evicted": evicted < len(self.catalogue.blobs),
            f"{log.count('Traceback')} tracebacks in the log": "Traceback" in log,
        }
        return [reason for reason, failed in checks.items() if failed]


def _under_way(seen: Sample) -> dict[str, float]:
    names = ("mirror_fills_in_progress", "mirror_clients_waiting")
    return {name: seen.figure(name) for name in names if seen.figure(name)}


def _line(seen: Sample) -> str:
    return (
        f"{seen.seconds:5.0f} s  RSS {seen.rss / MIB:6.1f} MiB  {seen.descriptors:4d} descriptors  "
        f"{seen.threads:3d} threads  CPU {seen.cpu:6.1f} s  disk {seen.disk / MIB:6.1f} MiB  "
        f"fills {seen.figure('mirror_fills_in_progress'):3.0f}  "
        f"waiting {seen.figure('mirror_clients_waiting'):3.0f}  "
        f"evicted {seen.figure('mirror_evictions_total'):6.0f}"
    )


def _table(tally: Counts, during: Sequence[Sample]) -> None:
    by_kind: dict[str, Counter[str]] = {}
    for (kind, result), count in tally.results.items():
        by_kind.setdefault(kind, Counter())[result] += count
    for kind, results in sorted(by_kind.items()):
        shown = "  ".join(f"{result} {count}" for result, count in sorted(results.items()))
        print(f"  {kind:10} {shown}")
    print(f"  received   {tally.received / MIB:.0f} MiB; wrong {len(tally.wrong)}")
    print(f"  most       {max(one.disk for one in during) / MIB:.1f} MiB on disk")
    for key, value in sorted(during[-1].figures.items()):
        if key.startswith(("mirror_fills_total", "mirror_requests_total")):
            print(f"  {key} {value:.0f}")
    print(f"  RSS        {reader(during):.3f} times, last quarter to second")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools.soak")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--clients", type=int, default=300)
    parser.add_argument("--pause", type=float, default=2.0, help="mean seconds between requests")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--directory", type=Path, help="keep files here; default: temporary")
    return parser.parse_args()


def _address(upstream: Process) -> str:
    upstream.wait_until(lambda: "\n" in upstream.output(), seconds=60)
    return str(json.loads(upstream.output().splitlines()[0])["url"])


def _soak(arguments: argparse.Namespace, directory: Path) -> list[str]:
    directory.mkdir(parents=True, exist_ok=True)
    catalogue = Catalogue(arguments.seed)
    max_bytes = catalogue.bytes // 3
    # Through the environment, because MirrorProcess writes the [cache] table.
    os.environ["MIRROR_CACHE__MAX_SIZE"] = str(max_bytes)
    command = [sys.executable, "-m", "tools.soak.upstream", str(arguments.seed)]
    upstream = Process(command, directory / "upstream.log")
    try:
        mirror = MirrorProcess(directory, {"docker.io": _address(upstream)}, _EXTRA, False)
        mirror.start()
        try:
            print(
                f"{len(catalogue.blobs)} blobs, {catalogue.bytes / MIB:.0f} MiB; "
                f"the mirror may keep {max_bytes / MIB:.0f} MiB; seed {arguments.seed}"
            )
            who = (arguments.seed, arguments.clients, arguments.pause)
            soak = Soak(mirror, catalogue, *who, max_bytes=max_bytes)
            return asyncio.run(soak.run(arguments.minutes * 60))
        finally:
            mirror.terminate()
    finally:
        upstream.terminate()
        print(f"upstream: {upstream.output().splitlines()[-1]}")


def main() -> int:
    """Run the soak; returns the exit code."""
    arguments = _arguments()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with tempfile.TemporaryDirectory(prefix="soak.") as temporary:
        reasons = _soak(arguments, arguments.directory or Path(temporary))
    for reason in reasons:
        print(f"FAILED: {reason}")
    print("failed" if reasons else "passed")
    return 1 if reasons else 0


if __name__ == "__main__":
    sys.exit(main())
