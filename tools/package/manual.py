"""The man page and the shell completion, from the tree of commands."""

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import typer

from mirror import __version__
from mirror.cli.root import app

_NOTES = """\
.SH FILES
.TP
.I /etc/mirror/mirror.toml
The configuration; each key can also be set as MIRROR_SECTION__KEY in the environment.
.TP
.I /var/cache/mirror
The cache of the service.
.SH EXIT STATUS
0 done, 1 failed, 2 usage or configuration, 130 interrupted.
"""


def completions() -> dict[str, str]:
    """Return the completion file of each shell by its path below ``/usr/share``."""

    def script(shell: str) -> str:
        environment = os.environ | {"_MIRROR_COMPLETE": f"source_{shell}"}
        command = [sys.executable, "-m", "mirror"]
        return subprocess.run(
            command, env=environment, check=True, stdout=subprocess.PIPE, text=True
        ).stdout.lstrip()

    return {
        "bash-completion/completions/mirror": script("bash"),
        # The script is the body of a function that zsh calls for the first completion.
        "zsh/vendor-completions/_mirror": f'{script("zsh")}_mirror_completion "$@"\n',
        "fish/vendor_completions.d/mirror.fish": script("fish"),
    }


def manual() -> str:
    """Return the man page ``mirror(1)``, which has all commands."""
    root: Any = typer.main.get_command(app)
    lines = [
        f'.TH MIRROR 1 "" "mirror {__version__}" "User Commands"',
        ".SH NAME",
        f"mirror \\- {_escaped(root.help).rstrip('.')}",
        ".SH SYNOPSIS",
        ".B mirror",
        ".I COMMAND",
        "[\\fIOPTIONS\\fR] [\\fIARGUMENTS\\fR]",
        ".SH OPTIONS",
        *_options(root, root.context_class(root, info_name="mirror")),
        ".SH COMMANDS",
        *_commands(root, root.context_class(root, info_name="mirror")),
    ]
    return "\n".join(lines) + "\n" + _NOTES


def _commands(group: Any, parent: Any) -> Iterator[str]:
    for name, command in group.commands.items():
        context = command.context_class(command, info_name=name, parent=parent)
        usage = " ".join(command.collect_usage_pieces(context))
        yield f".SS {_escaped(context.command_path)} {_escaped(usage)}"
        yield from (_escaped(line.strip()) or ".PP" for line in (command.help or "").splitlines())
        yield from _options(command, context)
        if hasattr(command, "commands"):
            yield from _commands(command, context)


def _options(command: Any, context: Any) -> Iterator[str]:
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None and parameter.name != "help":
            yield from (".TP", f".B {_escaped(record[0])}", _escaped(record[1]))


def _escaped(text: str) -> str:
    """Return text without meaning for roff: neither escapes, hyphens nor control lines."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{text}" if text.startswith((".", "'")) else text
