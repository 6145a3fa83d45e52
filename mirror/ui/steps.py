"""Splits the advice for a client into sentences and the commands to copy.  Pure.

In the advice, a command or a line of configuration stands on an indented line, or after a colon
at the end of a sentence; a remark may follow it after some spaces.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

_INLINE: Final = re.compile(r"(.*: )(systemctl .+|mirror .+)")
_REMARK: Final = re.compile(r"\s{3,}(?:\((.*)\)|# (.*))$")
_REGISTRIES: Final = re.compile(r"[\w-]+\.[\w.:-]+(?:, [\w.:-]+)*")


@dataclass(frozen=True, slots=True)
class Step:
    """A sentence, then the lines to copy, then remarks about them; each may be empty."""

    text: str
    commands: str
    remark: str = ""


def steps(advice: Sequence[str]) -> list[Step]:
    """Return the steps in order."""
    found: list[Step] = []
    text: list[str] = []
    commands: list[str] = []
    remarks: list[str] = []

    def end() -> None:
        if text or commands:
            lines = "\n".join(commands)
            found.append(Step(" ".join(text), lines, "; ".join(remarks)))
        for each in (text, commands, remarks):
            each.clear()

    for line in advice:
        inline = _INLINE.fullmatch(line)
        if line.startswith("  ") and not _REGISTRIES.fullmatch(line.strip()):
            command, remark = _split(line[2:])
            commands.append(command)
            remarks += [remark] if remark else []
            continue
        if commands:
            end()
        text.append(inline[1].strip() if inline else line.strip())
        if inline:
            command, remark = _split(inline[2])
            commands.append(command)
            remarks += [remark] if remark else []
    end()
    return found


def _split(line: str) -> tuple[str, str]:
    remark = _REMARK.search(line)
    if remark is None:
        return line.rstrip(), ""
    return line[: remark.start()], remark[1] or remark[2]
