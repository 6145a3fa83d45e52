"""Rows about many: many slow clients, many objects."""

import json
import random
import signal
import subprocess
import sys
import time
from functools import partial

from tests.bench.comparison import MIRROR, Result, at_most, interleaved
from tests.bench.library import Library
from tests.bench.load import ClientError, requests
from tests.bench.processes import forget_peaks, peak_mib
from tests.bench.servers import FULL_SPEED, Mirror
from tests.bench.stage import Stage, running, warm

_SLOW_CLIENTS = 500
_SLOW_SECONDS = 5
_FEW_OBJECTS = 1_000
_ASKED_OBJECTS = 20_000
_CONNECTIONS = 4  # so that the 99th percentile is the server's and not that of a queue


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
        server.stop()  # what the fill took is not what is measured here
        server.start()
        forget_peaks(server.pid)
        _read_slowly(orders | {"port": server.port})
        peak = peak_mib(server.pid)
    return Result({"MiB": {MIRROR: f"{peak:.0f}"}}, [at_most("RSS of a worker", 100, peak, "MiB")])


def _read_slowly(orders: dict[str, object]) -> None:
    command = [sys.executable, "-m", "tests.e2e.slow_readers", json.dumps(orders)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as crowd:
        assert crowd.stdout is not None
        began = crowd.stdout.readline().strip() == "ready"
        if began:
            time.sleep(_SLOW_SECONDS)
        crowd.send_signal(signal.SIGTERM)
        report = crowd.stdout.readline()
    if not began or json.loads(report)["closed"]:
        raise ClientError(f"the slow clients were not served: {report}")


def many_objects(stage: Stage) -> Result:
    """A large cache: its start, and its hits beside those of a small one."""
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
