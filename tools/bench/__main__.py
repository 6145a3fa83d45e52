"""``python -m tools.bench``: all rows, or those of ``--only``; exit code 1 if a row fails."""

import argparse
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.peers.process import NotReadyError
from tools.bench import cluster, crowds, daemons, fills, hits
from tools.bench.comparison import Gate, NotAvailableError, Result
from tools.bench.load import ClientError
from tools.bench.stage import QUICK, Scale, Stage
from tools.bench.table import heading, on_screen, table

_SHARED_MEMORY = Path("/dev/shm")
_ROOM_BYTES = 16 << 30  # cached files of all servers together, at full scale


@dataclass(frozen=True)
class Row:
    """A line of the table; docs/benchmarks.md cites ``name``."""

    name: str
    title: str
    measure: Callable[[Stage], Result]


ROWS = (
    Row("large-1", "large blob warm, 1 client", hits.large_one_client),
    Row("large-16", "large blob warm, 16 clients, 1 worker", hits.large_many_clients),
    Row("small", "64 KiB blobs, 32 connections", hits.small_blobs),
    Row("manifest-digest", "manifest by digest, 32 connections", hits.manifest_by_digest),
    Row("manifest-tag", "manifest by fresh tag, 32 connections", hits.manifest_by_tag),
    Row("tls-large", "large blob over TLS, 1 client", hits.large_over_tls),
    Row("tls-small", "64 KiB blobs over TLS, 32 connections", hits.small_over_tls),
    Row("latency", "manifest during a pull of 1 GiB", hits.manifest_beside_pull),
    Row("cold-1", "cold 1 GiB, upstream at 256 MB/s, 1 client", fills.cold_one_client),
    Row("cold-16", "cold 1 GiB, upstream at 256 MB/s, 16 clients", fills.cold_many_clients),
    Row("cold-fast", "cold 1 GiB, upstream unlimited, 1 client", fills.cold_fast_upstream),
    Row("cold-tls", "the same, upstream over TLS", fills.cold_over_tls),
    Row("segments", "cold 256 MiB, 16 MiB/s per connection", fills.cold_segments),
    Row("cluster-warm", "1 GiB in the bucket, empty disk, 1 client", cluster.warm_bucket),
    Row("cluster-redirect", "the same, 400 clients sent to it", cluster.redirected_to_bucket),
    Row("cluster-herd", "cold 256 MiB, 24 clients over 3 replicas", cluster.cold_herd),
    Row("workers", "2 workers against 1, no hot table", hits.two_workers),
    Row("rules", "hits under the last of 10 rules against none", hits.ten_rules),
    Row("slow-500", "500 slow clients on 1 GiB", crowds.slow_clients),
    Row("beside-slow", "another client beside slow ones", crowds.beside_slow_clients),
    Row("million", "1,000,000 objects", crowds.many_objects),
    Row("docker", "dockerd pulls a 1 GiB image, cold over 1 Gbit/s", daemons.docker_pull),
    Row(
        "docker-far",
        "dockerd pulls 20 layers, cold, 50 ms away, 4 MiB/s per connection",
        daemons.docker_pull_from_afar,
    ),
)


def main() -> int:
    """Measure, and print the table."""
    options = _options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("bench: terminated"))  # runs the cleanup
    scale = QUICK if options.quick else Scale()
    rows = [row for row in ROWS if not options.only or row.name in options.only]
    head = heading(scale, options.directory, options.quick)
    print(head + "\n", flush=True)
    directory = Path(tempfile.mkdtemp(prefix="mirror-bench-", dir=options.directory))
    results = []
    try:
        with Stage(directory, scale) as stage:
            for row, result in _measured(stage, rows):
                results.append((row.name, row.title, result))
            absent = stage.absent
    except NotAvailableError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    text = table(results, absent)
    print(text)
    if options.markdown:
        options.markdown.write_text(f"{head}\n\n{text}\n")
    return int(not all(_met(result) for _, _, result in results))


def _measured(stage: Stage, rows: list[Row]) -> Iterator[tuple[Row, Result | str]]:
    for row in rows:
        began = time.monotonic()
        result: Result | str
        try:
            result = row.measure(stage)
        except NotAvailableError as error:
            result = str(error)
        except (ClientError, NotReadyError, AssertionError, OSError) as error:
            result = Result(gates=[Gate("it runs", f"{type(error).__name__}: {error}", met=False)])
        print(on_screen(row.name, row.title, result))
        print(f"    ({time.monotonic() - began:.0f} s)\n", flush=True)
        yield row, result


def _met(result: Result | str) -> bool:
    return isinstance(result, str) or all(gate.met is not False for gate in result.gates)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tools.bench", description=__doc__)
    names = ", ".join(row.name for row in ROWS)
    parser.add_argument("--only", type=_names, default=[], help=f"some of: {names}")
    parser.add_argument("--quick", action="store_true", help="a test run of one minute")
    parser.add_argument("--markdown", type=Path, help="also write the table to this file")
    parser.add_argument("--directory", type=Path, default=_roomy(), help="for files and caches")
    return parser.parse_args()


def _names(text: str) -> list[str]:
    names = text.split(",")
    unknown = set(names) - {row.name for row in ROWS}
    if unknown:
        raise argparse.ArgumentTypeError(f"no such row: {', '.join(sorted(unknown))}")
    return names


def _roomy() -> Path:
    """A directory in memory if there is room: then no disk is measured."""
    try:
        if shutil.disk_usage(_SHARED_MEMORY).free >= _ROOM_BYTES:
            return _SHARED_MEMORY
    except OSError:
        pass
    return Path(tempfile.gettempdir())


if __name__ == "__main__":
    sys.exit(main())
