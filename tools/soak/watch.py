"""Resources of the mirror's process, from /proc, its metrics and its directory."""

import os
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.peers.mirror import MirrorProcess


@dataclass(frozen=True)
class Sample:
    """The mirror at one moment; ``seconds`` since the start of the soak."""

    seconds: float
    rss: int
    descriptors: int
    threads: int
    cpu: float
    disk: int
    figures: dict[str, float]

    def figure(self, name: str) -> float:
        """A sample of /metrics, or the sum over its labels."""
        return sum(
            value
            for key, value in self.figures.items()
            if key == name or key.startswith(name + "{")
        )


def sample(mirror: MirrorProcess, seconds: float) -> Sample:
    """Take a sample; blocks."""
    proc = Path(f"/proc/{mirror.pid}")
    status = dict(line.split(":", 1) for line in (proc / "status").read_text().splitlines())
    times = (proc / "stat").read_text().rpartition(")")[2].split()
    return Sample(
        seconds=seconds,
        rss=int(status["VmRSS"].split()[0]) * 1024,
        descriptors=len(os.listdir(proc / "fd")),
        threads=int(status["Threads"]),
        cpu=(int(times[11]) + int(times[12])) / os.sysconf("SC_CLK_TCK"),
        disk=disk_bytes(mirror.directory / "cache"),
        figures=mirror.metrics(),
    )


def disk_bytes(cache: Path) -> int:
    """Bytes of all objects and partial files; a file with several names counts once."""
    sizes: dict[int, int] = {}
    for kind in ("blobs", "manifests", "partial", "pending"):
        for directory, _, names in os.walk(cache / kind):
            for name in names:
                try:
                    found = os.lstat(os.path.join(directory, name))
                except FileNotFoundError:  # evicted meanwhile
                    continue
                sizes[found.st_ino] = found.st_size
    return sum(sizes.values())


def open_files(pid: int) -> Counter[str]:
    """Number of descriptors by type: sockets, deleted blobs, ..."""
    kinds: Counter[str] = Counter()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = str(link.readlink())
        except FileNotFoundError:
            continue
        kind = target.partition(":")[0] if not target.startswith("/") else _kind_of(target)
        kinds[kind] += 1
    return kinds


def _kind_of(path: str) -> str:
    known = ["blobs", "manifests", "partial", "expected", "pending", "tags", "listings", "ledger"]
    known += ["cache.db", "log"]
    found = [name for name in known if f"/{name}" in path]
    return (found[0] if found else path) + (" (deleted)" if path.endswith("(deleted)") else "")


def reader(samples: Sequence[Sample]) -> float:
    """The median RSS of the last quarter, divided by that of the second."""
    quarter = max(1, len(samples) // 4)
    second = statistics.median(one.rss for one in samples[quarter : 2 * quarter])
    last = statistics.median(one.rss for one in samples[-quarter:])
    return last / second
