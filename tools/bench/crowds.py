"""Rows with many slow clients, or many objects."""

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from tools.bench.comparison import MIRROR, Measured, Result, at_most, interleaved
from tools.bench.library import Library
from tools.bench.load import ClientError, Sample, downloads, requests
from tools.bench.processes import forget_peaks, peak_mib
from tools.bench.servers import FULL_SPEED, Mirror
from tools.bench.stage import OFFICE_LINE, Stage, running, warm

_SLOW_CLIENTS = 500
_SLOW_SECONDS = 5
_SETTLE_SECONDS = 3  # all are accepted, and have sent or read a little
_ALONE, _AMONG = "alone", "among them"
_FEW_OBJECTS = 1_000
_ASKED_OBJECTS = 20_000
_CONNECTIONS = 4  # the 99th percentile is the server's, without queueing


def slow_clients(stage: Stage) -> Result:
    """Memory while 500 clients read a large blob slowly."""
    orders = {
        "path": stage.corpus.large,
        "readers": _SLOW_CLIENTS,
        "rate": 64 * 1024,
        "window": 64 * 1024,
    }
    with stage.fresh(Mirror, FULL_SPEED) as server:
        warm(server, [stage.corpus.large])
        server.stop()  # excludes the memory of the fill
        server.start()
        forget_peaks(server.pid)
        with _crowd(server, **orders):
            time.sleep(_SLOW_SECONDS)
        peak = peak_mib(server.pid)
    return Result({"MiB": {MIRROR: f"{peak:.0f}"}}, [at_most("RSS of a worker", 100, peak, "MiB")])


def beside_slow_clients(stage: Stage) -> Result:
    """How much slow readers, idle connections and readers of a fill slow down another client."""
    stored, (_, tag) = stage.corpus.middle, stage.corpus.manifest
    rounds = stage.scale.few_rounds
    with stage.fresh(_hospitable, FULL_SPEED) as server:
        warm(server, [stage.corpus.large, stored, tag])
        readers = {"path": stage.corpus.large, "readers": 1000, "rate": 1 << 20}
        pulls = _alone_and_among(
            server, rounds, partial(downloads, server, stored, seconds=1), **readers
        )
        asked = partial(requests, server, [tag], stage.listing, stage.scale.seconds, 1)
        manifests = _alone_and_among(server, rounds, asked, idle=2000, loris=200)
    with stage.fresh(_hospitable, OFFICE_LINE) as server:
        direct = downloads(stage.origin.door(OFFICE_LINE), stage.corpus.large)["seconds"]
        tardy = {"path": stage.corpus.large, "readers": 200, "rate": 1, "window": 4096}
        with _crowd(server, **tardy):
            filled = downloads(server, stage.corpus.large)["seconds"]
    slower = {
        # The fastest pulls: the readers and this client together need more than two cores.
        "stored blob": pulls.median(_ALONE, "rate")
        / max(it["rate"] for it in pulls.samples[_AMONG]),
        "manifest": manifests.median(_AMONG, "p50") / manifests.median(_ALONE, "p50"),
        "fill": filled / direct,
    }
    return Result(
        {"GB/s": pulls.shown("rate"), "manifest ms": manifests.shown("p50")},
        [
            at_most("stored blob among 1000 at 1 MiB/s", 1.5, slower["stored blob"]),
            at_most("manifest among 2200 idle and dribbling", 3, slower["manifest"]),
            at_most("fill that 200 read at 1 B/s, of direct", 1.3, slower["fill"]),
        ],
    )


def _alone_and_among(
    server: Mirror, rounds: int, measure: Callable[[], Sample], **orders: object
) -> Measured:
    def among() -> Sample:
        with _crowd(server, **orders):
            time.sleep(_SETTLE_SECONDS)
            return measure()

    return interleaved(rounds, {_ALONE: measure, _AMONG: among})


def _hospitable(directory: Path, upstream: int) -> Mirror:
    """A mirror that accepts enough connections from one address."""
    return Mirror(directory, upstream, {"MIRROR_LIMITS__CONNECTIONS_PER_CLIENT": "5000"})


@contextmanager
def _crowd(server: Mirror, **orders: object) -> Iterator[None]:
    """Start slow clients in a separate process; each has received its first bytes."""
    told = json.dumps({"port": server.port, **orders})
    command = [sys.executable, "-m", "tests.e2e.slow_readers", told]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as crowd:
        assert crowd.stdout is not None
        began = crowd.stdout.readline().strip() == "ready"
        try:
            if began:
                yield
        finally:
            crowd.send_signal(signal.SIGTERM)
            report = crowd.stdout.readline()
    if not began or json.loads(report)["closed"]:
        raise ClientError(f"the slow clients were not served: {report}")


def many_objects(stage: Stage) -> Result:
    """A large cache: its start, and its hits compared with those of a small one."""
    library = Library(stage)
    few, many = (library.filled(count) for count in (_FEW_OBJECTS, stage.scale.objects))
    starts = sorted(many.start_seconds() for _ in range(stage.scale.few_rounds))
    with running(few.mirror), running(many.mirror):
        measured = interleaved(
            stage.scale.rounds,
            {
                f"{one.count} objects": partial(
                    requests,
                    one.mirror,
                    random.sample(one.paths, min(one.count, _ASKED_OBJECTS)),
                    stage.listing,
                    stage.scale.seconds,
                    _CONNECTIONS,
                )
                for one in (few, many)
            },
        )
    start = starts[len(starts) // 2]
    names = [f"{one.count} objects" for one in (many, few)]
    return Result(
        {
            "start s": {names[0]: f"{start:.2f}"},
            "requests/s": measured.shown("rate", "{:.0f}"),
            "p99 ms": measured.shown("p99"),
        },
        [
            at_most("start", 2, start, "s"),
            at_most("p99, of that of 1000 objects", 1.2, measured.ratio("p99", *names)),
        ],
    )
