"""What the command modules share: options, the configuration that they name, printed errors."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from mirror.config import Config, load
from mirror.user_error import UserError

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", help="TOML file (or $MIRROR_CONFIG, /etc/mirror/mirror.toml)."),
]
CacheOption = Annotated[
    Path | None, typer.Option("--cache-dir", help="Cache directory [default: as configured].")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON: bytes, and RFC 3339 times.")]


class _CommandGroup(TyperGroup):
    def invoke(self, ctx: Any) -> Any:  # the type of a context differs between releases of typer
        """Run a command; end it with one line per error, and the exit code of the error."""
        try:
            return super().invoke(ctx)
        except UserError as error:
            for line in error.lines:
                print(f"mirror: {line}", file=sys.stderr)
            raise typer.Exit(error.code) from error


def command_group(**options: Any) -> typer.Typer:
    """Return an empty group of commands; a :class:`UserError` ends any of them."""
    # Without markup: its boxes would break lines for logs and grep.
    return typer.Typer(cls=_CommandGroup, rich_markup_mode=None, **options)


def settings(file: Path | None, cache_dir: Path | None = None) -> Config:
    """Return the configuration of a command.

    Raises:
        UserError: it has mistakes.
    """
    return load(file, {} if cache_dir is None else {"cache": {"directory": str(cache_dir)}})
