"""Globs of names: one dialect for images, repositories and hosts.

``*`` matches any text without a slash, ``?`` one character other than a slash, and ``**``, alone
between slashes, any number of parts (at the end at least one).
"""

import re
from fnmatch import translate
from functools import lru_cache
from typing import Final

_WILD: Final = frozenset("*?")
_ANY: Final = "**"
_REMEMBERED: Final = 1024


class InvalidGlob(ValueError):  # noqa: N818  # reads as the other names' mistakes
    """A text is not a glob; the message says what is allowed."""


def is_glob(text: str) -> bool:
    """Whether a text contains ``*`` or ``?``."""
    return not _WILD.isdisjoint(text)


@lru_cache(_REMEMBERED)
def compile_glob(glob: str) -> re.Pattern[str]:
    """Return the expression that fully matches the names that a glob means.

    The parts before the next ``**`` are matched once, at the first position: later positions cannot
    help, and trying them would cost exponentially many steps.

    Raises:
        InvalidGlob: ``**`` stands beside other text.
    """
    runs: list[list[str]] = [[]]  # the parts before, between and after each ``**``
    for part in glob.split("/"):
        if part == _ANY:
            runs.append([])
        else:
            runs[-1].append(_part(part))
    first, *others = runs
    if not others:
        return re.compile("/".join(first), re.ASCII)
    *middle, last = others
    front = "".join(f"{part}/" for part in first)
    found = "".join(f"(?>(?:[^/]+/)*?{'/'.join(run)}/)" for run in middle if run)
    end = f"(?:[^/]+/)*{'/'.join(last)}" if last else "[^/]+(?:/[^/]+)*"
    return re.compile(front + found + end, re.ASCII)


def _part(glob: str) -> str:
    """Return the expression for one part; what is between two stars is matched once, too."""
    if _ANY in glob:
        raise InvalidGlob("** by itself between slashes, as in mcr.microsoft.com/dotnet/**")
    first, *pieces = ("[^/]".join(map(re.escape, piece.split("?"))) for piece in glob.split("*"))
    if not pieces:
        return first
    *middle, last = pieces
    return first + "".join(f"(?>[^/]*?{piece})" for piece in middle) + f"[^/]*{last}"


# For one release: in `allow` and `deny` of an upstream, `*` and `?` matched slashes, too.


def is_old(glob: str) -> bool:
    """Whether a glob of repositories was written for the dialect of earlier releases."""
    beside = any(_ANY in part and part != _ANY for part in glob.split("/"))
    return "[" in glob or beside or (is_glob(glob) and _ANY not in glob)


@lru_cache(_REMEMBERED)
def compile_repositories(glob: str) -> re.Pattern[str]:
    """As :func:`compile_glob`; an old glob keeps its meaning."""
    return re.compile(translate(glob)) if is_old(glob) else compile_glob(glob)
