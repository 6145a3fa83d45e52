"""Rows with cached content."""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial

from tools.bench.comparison import (
    MIRROR,
    P1,
    P2,
    P3,
    Gate,
    Measured,
    NotAvailableError,
    Result,
    at_least,
    at_most,
    interleaved,
    plain,
    quiet,
    surely_at_most,
)
from tools.bench.load import Sample, decrypted, downloads, pings_beside_downloads, requests
from tools.bench.servers import FULL_SPEED, Mirror, mirror_knows
from tools.bench.stage import Stage, warm

_RULE_ROUNDS = 6  # times those of other rows


def large_one_client(stage: Stage) -> Result:
    """A large blob, one client."""
    measured = _large(stage, stage.corpus.large, 1, stage.scale.seconds)
    return _large_result(
        measured,
        at_least("throughput, of P3", 0.85, measured.ratio("rate", MIRROR, P3)),
        at_most("CPU per GiB, of P3", 1.15, measured.ratio("cpu_gib", MIRROR, P3)),
    )


def large_many_clients(stage: Stage) -> Result:
    """Large blobs, 16 clients, one worker each."""
    measured = _large(stage, stage.corpus.middle, 16, 0)
    return _large_result(
        measured,
        at_least("throughput, of P3", 1.2, measured.ratio("rate", MIRROR, P3)),
        at_least("throughput, of P1", 1.4, measured.ratio("rate", MIRROR, P1)),
    )


def _large(stage: Stage, path: str, clients: int, seconds: float) -> Measured:
    contestants = {
        name: partial(downloads, server, path, clients, seconds)
        for name, server in stage.warm(path).items()
    }
    return interleaved(stage.scale.rounds, contestants)


def _large_result(measured: Measured, *gates: Gate) -> Result:
    figures = {"GB/s": measured.shown("rate"), "CPU-s/GiB": measured.shown("cpu_gib")}
    return Result(figures, list(gates))


def small_blobs(stage: Stage) -> Result:
    """64 KiB blobs, 32 connections."""
    return _small(stage, stage.corpus.small)


def manifest_by_digest(stage: Stage) -> Result:
    """A manifest by its digest."""
    return _small(stage, [stage.corpus.manifest[0]])


def manifest_by_tag(stage: Stage) -> Result:
    """A manifest by a tag that is still fresh."""
    return _small(stage, [stage.corpus.manifest[1]])


def _small(stage: Stage, paths: Sequence[str]) -> Result:
    """Gates are on CPU: the mirror answers from one thread, and P2 from several.

    With client and server on the same cores, requests/s say how many threads had a core.
    """
    servers = stage.warm(*paths) | stage.warm_quiet(*paths)
    measured = interleaved(
        stage.scale.rounds,
        {
            name: partial(requests, one, paths, stage.listing, stage.scale.seconds)
            for name, one in servers.items()
        },
    )

    def per_cpu(one: str, other: str) -> float:
        return measured.ratio("cpu_request", other, one)

    return Result(
        {
            "requests/s": measured.shown("rate", "{:.0f}"),
            "p99 ms": measured.shown("p99"),
            "CPU us/request": measured.shown("cpu_request", "{:.1f}"),
        },
        [
            at_least(f"requests per CPU-s: {one} of {other}", limit, per_cpu(one, other))
            for one, other, limit in (
                (quiet(MIRROR), quiet(P2), 1.5),
                (MIRROR, quiet(MIRROR), 0.8),
                (MIRROR, P3, 0.5),
            )
        ],
    )


def large_over_tls(stage: Stage) -> Result:
    """A large blob over TLS, one client."""
    path = stage.corpus.large
    with stage.over_tls(path) as servers:
        measured = interleaved(
            stage.scale.rounds,
            {name: partial(decrypted, one, path) for name, one in servers.items()},
        )
    figures = {"GB/s": measured.shown("rate"), "CPU-s/GiB": measured.shown("cpu_gib")}
    return _tls_result(figures, measured, "cpu_gib", "GiB per CPU-s")


def small_over_tls(stage: Stage) -> Result:
    """64 KiB blobs over TLS, 32 connections."""
    paths = stage.corpus.small
    with stage.over_tls(*paths) as servers:
        measured = interleaved(
            stage.scale.rounds,
            {
                name: partial(requests, one, paths, stage.listing, stage.scale.seconds)
                for name, one in servers.items()
            },
        )
    figures = {
        "requests/s": measured.shown("rate", "{:.0f}"),
        "requests per CPU-s": measured.shown("per_cpu", "{:.0f}"),
    }
    return _tls_result(figures, measured, "cpu_request", "requests per CPU-s")


def _tls_result(
    figures: dict[str, dict[str, str]], measured: Measured, cost: str, work: str
) -> Result:
    """``cost`` is the CPU for a unit of ``work``."""
    figures["CPU, of no TLS"] = {MIRROR: measured.shown_ratio(cost, MIRROR, plain(MIRROR))}
    gates = [
        at_least(f"{work}, of {peer}", 0.7, measured.ratio(cost, peer, MIRROR)) for peer in (P2, P3)
    ]
    return Result(figures, gates)


def manifest_beside_pull(stage: Stage) -> Result:
    """Latency of a manifest during the pull of a large blob."""
    small, large = stage.corpus.manifest[0], stage.corpus.large
    servers = stage.warm(small, large)
    measured = interleaved(
        stage.scale.few_rounds,
        {
            name: partial(pings_beside_downloads, one, small, large, 2 * stage.scale.seconds)
            for name, one in servers.items()
        },
    )
    return Result(
        {"p99 ms": measured.shown("p99"), "max ms": measured.shown("max")},
        [at_most("p99", 20, measured.median(MIRROR, "p99"), "ms")],
    )


def two_workers(stage: Stage) -> Result:
    """Two workers compared with one, without cached responses."""
    if not mirror_knows(server__workers="2"):
        raise NotAvailableError("this mirror has no [server] workers")
    cold_table = {"MIRROR_SERVER__HOT": "false"} if mirror_knows(server__hot="false") else {}
    both = cold_table | {"MIRROR_SERVER__WORKERS": "2"}
    kinds = {"64 KiB": stage.corpus.small, "manifest": [stage.corpus.manifest[0]]}
    one, two = "1 worker", "2 workers"
    measured = _compared(stage, {one: cold_table, two: both}, kinds, stage.scale.rounds)
    gates = [
        at_least(f"{kind}, {two} of {one}", 1.6, measured.ratio("rate", *_named(kind, two, one)))
        for kind in kinds
    ]
    return _compared_result(measured, gates)


def ten_rules(stage: Stage) -> Result:
    """Hits under the last of ten rules compared with hits without rules.

    A difference of 3 % is less than the noise of a round: there are more rounds, and no verdict
    if that does not suffice.
    """
    others = [{"images": [f"docker.io/team{number}/**"], "cooldown": "3d"} for number in range(9)]
    last = {"images": ["docker.io/**"], "cooldown": "3d", "unseen": "allow"}
    rules = json.dumps([*others, last])
    if not mirror_knows(policy=rules):
        raise NotAvailableError("this mirror has no [[policy]]")
    kinds = {"64 KiB": stage.corpus.small, "tag": [stage.corpus.manifest[1]]}
    none, ten = "no rules", "10 rules"
    servers: dict[str, Mapping[str, str]] = {none: {}, ten: {"MIRROR_POLICY": rules}}
    measured = _compared(stage, servers, kinds, _RULE_ROUNDS * stage.scale.rounds)
    gates = [
        surely_at_most(
            f"CPU per request, {kind}, {ten} of {none}",
            1.03,
            measured.ratios("cpu_request", *_named(kind, ten, none)),
        )
        for kind in kinds
    ]
    return _compared_result(measured, gates)


def _compared(
    stage: Stage,
    servers: Mapping[str, Mapping[str, str]],
    kinds: Mapping[str, Sequence[str]],
    rounds: int,
) -> Measured:
    """Compare mirrors with different settings, one kind of request after the other."""
    samples: dict[str, list[Sample]] = {}
    with ExitStack() as ending:
        running = {
            name: ending.enter_context(stage.fresh(partial(Mirror, settings=settings), FULL_SPEED))
            for name, settings in servers.items()
        }
        for kind, paths in kinds.items():
            contestants: dict[str, Callable[[], Sample]] = {}
            for name, server in running.items():
                warm(server, paths)
                contestants[_named(kind, name)[0]] = partial(
                    requests, server, paths, stage.listing, stage.scale.seconds
                )
            samples |= interleaved(rounds, contestants).samples
    return Measured(samples)


def _named(kind: str, *servers: str) -> list[str]:
    return [f"{server}, {kind}" for server in servers]


def _compared_result(measured: Measured, gates: list[Gate]) -> Result:
    figures = {
        "requests/s": measured.shown("rate", "{:.0f}"),
        "CPU us/request": measured.shown("cpu_request", "{:.1f}"),
    }
    return Result(figures, gates)
