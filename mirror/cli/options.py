"""What the command modules share: options, the configuration that they name, printed errors."""

import sys
from pathlib import Path
from typing import Annotated, Any, Final

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


#: What stands for the value of an option in its help, instead of a type of Python.
_VALUES: Final = {
    "called": "NAME",
    "ca_file": "FILE",
    "cache_dir": "DIR",
    "config": "FILE",
    "file": "FILE",
    "listen": "ADDRESS",
    "max_size": "SIZE",
    "output": "FILE",
    "parallel": "NUMBER",
    "platform": "PLATFORM",
    "program": "FILE",
    "reason": "TEXT",
    "root": "DIR",
    "url": "URL",
    "workers": "NUMBER",
}
_WHOLE: Final = 1000  # characters of a summary, which is wrapped instead of cut off


class _CommandGroup(TyperGroup):
    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the commands by panel, each with the whole first sentence of its help."""
        panels: dict[str, list[tuple[str, str]]] = {}
        for name in self.list_commands(ctx):
            command = self.get_command(ctx, name)
            if command is not None and not command.hidden:
                panel = getattr(command, "rich_help_panel", None)
                summary = command.get_short_help_str(limit=_WHOLE)
                panels.setdefault(panel or "Commands", []).append((name, summary))
        for panel, commands in panels.items():
            with formatter.section(panel):
                formatter.write_dl(commands)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a command, with words for the values of its options."""
        command = super().get_command(ctx, cmd_name)
        for each in () if command is None else command.params:
            if each.param_type_name == "option" and each.name in _VALUES:
                each.metavar = _VALUES[each.name]
        return command

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
