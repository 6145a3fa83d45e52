"""Tables and amounts for people: aligned, in colour on a terminal, plain everywhere else."""

import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

_MINUTE, _HOUR, _DAY = 60, 3600, 86400


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]], right: str = "") -> None:
    """Print rows below a header; columns named in ``right`` are numbers."""
    console = Console(highlight=False)
    if not console.is_terminal:
        _print_plain([header, *rows], [name in right.split() for name in header])
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in header:
        table.add_column(name, justify="right" if name in right.split() else "left")
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(table)


def _print_plain(rows: Sequence[Sequence[str]], right: Sequence[bool]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (
            cell.rjust(width) if flush else cell.ljust(width)
            for cell, width, flush in zip(row, widths, right, strict=True)
        )
        sys.stdout.write("  ".join(cells).rstrip() + "\n")


def ago(seconds: float) -> str:
    """How long ago something was, in one word or two."""
    for unit, name in ((_DAY, "day"), (_HOUR, "hour"), (_MINUTE, "minute")):
        if seconds >= unit:
            count = int(seconds // unit)
            return f"{count} {name}{'' if count == 1 else 's'} ago"
    return "just now"
