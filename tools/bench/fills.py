"""Rows with content that comes from upstream first."""

import hashlib
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from statistics import median

from tools.bench.comparison import (
    DIRECT,
    MIRROR,
    P1,
    P2,
    P4,
    Gate,
    NotAvailableError,
    Result,
    at_least,
    at_most,
    interleaved,
)
from tools.bench.corpus import MIB
from tools.bench.load import Sample, downloads, spread_downloads
from tools.bench.servers import FULL_SPEED, FULL_SPEED_TLS, Server, mirror_knows
from tools.bench.stage import OFFICE_LINE, SLOW_LINE, Stage

HASH = "sha256"


def cold_one_client(stage: Stage) -> Result:
    """A blob that is not cached, from upstream at 256 MB/s."""
    contestants = _cold(stage, stage.corpus.large, 1, OFFICE_LINE)
    few = stage.scale.few_rounds
    measured = interleaved(
        stage.scale.rounds, contestants, fewer={P1: 2, P2: 1, P4: 2, DIRECT: few}
    )
    return Result(
        {
            "s": measured.shown("seconds"),
            "CPU-s": measured.shown("cpu"),
            "first byte ms": measured.shown("first_byte", "{:.0f}"),
            "times from upstream": measured.shown("fetched"),
        },
        [
            at_most("time, of a direct download", 1.05, measured.ratio("seconds", MIRROR, DIRECT)),
            at_most("server CPU", 2.5, measured.median(MIRROR, "cpu"), "s"),
        ],
    )


def cold_fast_upstream(stage: Stage) -> Result:
    """A blob that is not cached, from an upstream as fast as the loopback.

    nginx verifies nothing: the CPU of hashing the blob is measured beside, and allowed.
    """
    return _fast(stage, _cold(stage, stage.corpus.large, 1, FULL_SPEED))


def cold_over_tls(stage: Stage) -> Result:
    """The same over TLS, as registries on the Internet are asked."""
    path = stage.corpus.large
    kinds = {name: partial(kind, upstream_ca=stage.ca) for name, kind in stage.kinds.items()}
    return _fast(
        stage,
        {
            name: partial(through, stage, [kind], path, 1, FULL_SPEED_TLS)
            for name, kind in kinds.items()
        },
    )


def _fast(stage: Stage, contestants: dict[str, Callable[[], Sample]]) -> Result:
    contestants[HASH] = partial(hashing, stage.corpus.large_bytes)
    measured = interleaved(stage.scale.rounds, contestants)
    cpu = zip(*(measured.samples[name] for name in (MIRROR, P2, HASH)), strict=True)
    excess = median(one["cpu"] / (1.3 * two["cpu"] + sha["cpu"]) for one, two, sha in cpu)
    gates = [at_most("CPU, of 1.3 x P2's and the hash", 1.0, excess)]
    if P4 in contestants:
        gates.append(at_most("time, of P4", 1.0, measured.ratio("seconds", MIRROR, P4)))
    return Result(
        {
            "s": measured.shown("seconds"),
            "CPU-s": measured.shown("cpu"),
            "first byte ms": measured.shown("first_byte", "{:.0f}"),
            "times from upstream": measured.shown("fetched"),
        },
        gates,
    )


def hashing(size: int) -> Sample:
    """The CPU time to hash ``size`` bytes."""
    block = bytes(MIB)
    digest = hashlib.sha256()
    began = time.process_time()
    for _ in range(size // MIB):
        digest.update(block)
    return {"cpu": time.process_time() - began}


def cold_many_clients(stage: Stage) -> Result:
    """The same blob for 16 clients at once; without a mirror, each of them asks upstream."""
    contestants = _cold(stage, stage.corpus.large, 16, OFFICE_LINE)
    few = stage.scale.few_rounds
    measured = interleaved(few, contestants, fewer={P1: 2, P2: 1, P4: 2, DIRECT: 2})
    fetched = [sample["fetched"] for sample in measured.samples[MIRROR]]
    return Result(
        {
            "s": measured.shown("seconds"),
            "CPU-s": measured.shown("cpu"),
            "last first byte ms": measured.shown("first_byte", "{:.0f}"),
            "times from upstream": measured.shown("fetched"),
        },
        [
            Gate("once from upstream", f"{max(fetched):g}", set(fetched) == {1.0}),
            at_most("last first byte", 100, measured.median(MIRROR, "first_byte"), "ms"),
            at_most("time, of direct", 1.1, measured.ratio("seconds", MIRROR, DIRECT)),
            at_most("CPU, of P1", 0.5, measured.ratio("cpu", MIRROR, P1)),
        ],
    )


def cold_segments(stage: Stage) -> Result:
    """An upstream that is slow per connection."""
    if not any(mirror_knows(**{f"{table}__connections": "4"}) for table in ("fetch", "fill")):
        raise NotAvailableError("this mirror has no [fetch] connections")
    contestants = _cold(stage, stage.corpus.middle, 1, SLOW_LINE)
    wanted = {name: contestants[name] for name in (MIRROR, DIRECT)}
    # nginx limits one connection to the same rate every time: one round is enough.
    measured = interleaved(stage.scale.few_rounds, wanted, fewer={DIRECT: 1})
    faster = measured.median(DIRECT, "seconds") / measured.median(MIRROR, "seconds")
    return Result(
        {
            "s": measured.shown("seconds"),
            "CPU-s": measured.shown("cpu"),
            "times from upstream": measured.shown("fetched"),
        },
        [at_least("speed, of one connection", 3.5, faster)],
    )


def _cold(stage: Stage, path: str, clients: int, rate: int) -> dict[str, Callable[[], Sample]]:
    """All servers with an empty cache, and the clients directly at upstream."""
    cached: dict[str, Callable[[], Sample]] = {
        name: partial(through, stage, [kind], path, clients, rate)
        for name, kind in stage.kinds.items()
    }
    return cached | {DIRECT: partial(_directly, stage, path, clients, rate)}


def through(
    stage: Stage,
    builds: Iterable[Callable[[Path, int], Server]],
    path: str,
    clients: int,
    rate: int,
) -> Sample:
    """Pull through servers with empty caches; ``fetched`` is how often upstream sent the blob."""
    before = stage.origin.sent(path)
    with ExitStack() as ending:
        servers = [ending.enter_context(stage.fresh(build, rate)) for build in builds]
        sample = spread_downloads(servers, path, clients)
    # Counted after the servers have ended: their requests to upstream have ended then, too.
    size = (stage.corpus.root / path[1:]).stat().st_size
    return sample | {"fetched": (stage.origin.sent(path) - before) / size}


def _directly(stage: Stage, path: str, clients: int, rate: int) -> Sample:
    sample = downloads(stage.origin.door(rate), path, clients)
    del sample["cpu"], sample["cpu_gib"]  # upstream's share, which is the same for all
    return sample | {"fetched": float(clients)}
