"""The results as Markdown, which is readable on a terminal, too."""

import os
import platform
import sys
from collections.abc import Iterable
from pathlib import Path

from tools.bench.comparison import Result
from tools.bench.stage import Scale

_BUSY = 0.5  # average number of runnable processes, before the benchmark starts any
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

P1 distribution as pull-through cache, P2 nginx proxy_cache, P3 nginx static with sendfile, direct:
from upstream. One worker each, access logs in files. Clients: wrk for small answers,
`tools/bench/downloads.py` for large ones."""
    load = os.getloadavg()[0]
    if load > _BUSY:
        text += f"\n\n**Busy: {load:.1f} processes wanted a core in the last minute.**"
    if quick:
        text += "\n\n**Quick: this shows that it works; the figures mean little.**"
    return text


def table(rows: Iterable[tuple[str, str, Result | str]]) -> str:
    """Names, titles and results of rows; a result that is text is the reason for a missing one."""
    lines = [_line(_HEADINGS), _line(["---"] * len(_HEADINGS))]
    for name, title, result in rows:
        lines += _lines(name, title, result)
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
    verdicts = ["yes" if gate.met else "**no**" for gate in result.gates]
    return [_line([first, *("<br>".join(cell) for cell in (figures, asked, got, verdicts))])]


def on_screen(name: str, title: str, result: Result | str) -> str:
    """One row, as plain text for a terminal."""
    if isinstance(result, str):
        return f"{name}: {title}\n    n/a: {result}"
    lines = [f"{name}: {title}"]
    for figure, found in result.figures.items():
        lines += [f"    {figure:22} {server:20} {found[server]}" for server in sorted(found)]
    for gate in result.gates:
        lines.append(f"    {'ok  ' if gate.met else 'NOT '} {gate.asked}: {gate.got}")
    return "\n".join(lines)


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), "?")
