"""The results as Markdown, which is readable on a terminal, too."""

import os
import platform
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from tools.bench.comparison import Result
from tools.bench.stage import Scale

_BUSY = 0.5  # average number of runnable processes, before the benchmark starts any
_VERDICTS = {True: "yes", False: "**no**", None: "unclear"}
_MARKS = {True: "ok  ", False: "NOT ", None: "?   "}
_HEADINGS = ("row", "measured", "asked", "got", "")


def heading(scale: Scale, directory: Path, quick: bool) -> str:
    """What was measured and where, and how to read the table."""
    cores = len(os.sched_getaffinity(0))
    text = f"""\
{platform.system()} {platform.release()}, {cores} cores, {_processor()}, files in {directory}.
{platform.python_implementation()} {sys.version}.
Everything on the loopback, upstream and clients on the same cores; medians of {scale.rounds}
interleaved rounds (least-most), ratios within a round; slow rows give the peers fewer, docker
has {scale.few_rounds}. CPU is the server's alone.

P1 distribution 2.8 as pull-through cache, P2 nginx proxy_cache, P3 nginx static with sendfile,
P4 distribution v3 as pull-through cache, direct: from upstream. One worker each, access logs in
files. In the cluster rows, mirror and P4 are replicas over one versitygw (S3) and a redis-server.
Clients: wrk for small answers, `tools/bench/downloads.py` for large ones; over TLS 1.3 wrk and
curl, which offer the ciphers in Go's order, as Docker does."""
    load = os.getloadavg()[0]
    if load > _BUSY:
        text += f"\n\n**Busy: {load:.1f} processes wanted a core in the last minute.**"
    if quick:
        text += "\n\n**Quick: this shows that it works; the figures mean little.**"
    return text


def table(rows: Iterable[tuple[str, str, Result | str]], absent: Mapping[str, str]) -> str:
    """Names, titles and results of rows; a result that is text is the reason for a missing one.

    ``absent``: peers that no row has, and why.
    """
    lines = [_line(_HEADINGS), _line(["---"] * len(_HEADINGS))]
    for name, title, result in rows:
        lines += _lines(name, title, result)
    lines += [f"\n{peer} is not here: {reason}" for peer, reason in absent.items()]
    return "\n".join(lines)


def _lines(name: str, title: str, result: Result | str) -> list[str]:
    first = f"`{name}` {title}"
    if isinstance(result, str):
        return [_line([first, "", "", f"n/a: {result}", "n/a"])]
    figures = [
        f"{figure}: " + "; ".join(f"{server} {value}" for server, value in sorted(found.items()))
        for figure, found in result.figures.items()
    ]
    asked = [gate.asked for gate in result.gates]
    got = [gate.got for gate in result.gates]
    verdicts = [_VERDICTS[gate.met] for gate in result.gates]
    return [_line([first, *("<br>".join(cell) for cell in (figures, asked, got, verdicts))])]


def on_screen(name: str, title: str, result: Result | str) -> str:
    """One row, as plain text for a terminal."""
    if isinstance(result, str):
        return f"{name}: {title}\n    n/a: {result}"
    lines = [f"{name}: {title}"]
    for figure, found in result.figures.items():
        lines += [f"    {figure:22} {server:20} {found[server]}" for server in sorted(found)]
    for gate in result.gates:
        lines.append(f"    {_MARKS[gate.met]} {gate.asked}: {gate.got}")
    return "\n".join(lines)


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "?")
