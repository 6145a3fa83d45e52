"""The man page and the completion that packages bring."""

from typing import Any

import pytest
import typer

from mirror.cli.root import app
from tools.package.manual import completions, manual


def test_the_man_page_has_each_command_with_its_options():
    text = manual().replace("\\-", "-")

    def check(path: str, command: Any) -> None:
        assert f"\n.SS {path} " in text
        section = text.partition(f"\n.SS {path} ")[2].partition("\n.SS ")[0]
        for option in command.params:
            assert all(name in section for name in option.opts), (path, option.opts)
        for name, below in getattr(command, "commands", {}).items():
            check(f"{path} {name}", below)

    root: Any = typer.main.get_command(app)
    for name, command in root.commands.items():
        check(f"mirror {name}", command)


@pytest.mark.long
@pytest.mark.slow
def test_each_shell_gets_a_completion_that_asks_the_command():
    found = completions()
    assert {path.partition("/")[0] for path in found} == {"bash-completion", "zsh", "fish"}
    assert all("_MIRROR_COMPLETE=complete_" in text for text in found.values())
