"""Tables and amounts for people: aligned; in colour on a terminal, plain elsewhere."""

import sys
from collections.abc import Container, Sequence

from mirror.ui import formatting

_NBSP = "\N{NO-BREAK SPACE}"
_MINUTE, _HOUR, _DAY = 60, 3600, 86400


def print_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], right: Container[str] = ()
) -> None:
    """Print rows below a header; columns named in ``right`` are right-aligned."""
    # Imported late: it takes 2 MiB, and `serve` prints no tables.
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    console = Console(highlight=False)
    if not console.is_terminal:
        _print_plain([header, *rows], [name in right for name in header])
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in header:  # folded, not truncated: users paste the names
        table.add_column(name, justify="right" if name in right else "left", overflow="fold")
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


def share(part: float | None) -> str:
    """A share of one as a percentage, a dash for None."""
    return "-" if part is None else formatting.share(part).replace(_NBSP, " ")


def ago(seconds: float) -> str:
    """How long ago, as text: "2 hours ago"."""
    for unit, name in ((_DAY, "day"), (_HOUR, "hour"), (_MINUTE, "minute")):
        if seconds >= unit:
            count = int(seconds // unit)
            return f"{count} {name}{'' if count == 1 else 's'} ago"
    return "just now"
