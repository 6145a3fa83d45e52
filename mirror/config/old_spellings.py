"""Old spellings: they keep their meaning for one release, and are logged at the start.

Sizes in powers of 1000, and globs in ``allow`` and ``deny`` whose ``*`` matches slashes.
"""

from collections.abc import Iterator
from typing import Any, Final

from pydantic import BaseModel

from mirror.config.fields import Size
from mirror.config.mistakes import spelt
from mirror.config.model import Config
from mirror.oci.image_glob import is_glob, is_old

Place = tuple[str, ...]

_GLOBS: Final = frozenset({"allow", "deny"})


def old_spellings(config: Config) -> Iterator[str]:
    """Yield one line per old spelling: the key, what was found, what to write instead."""
    for place, value in _values(config, ()):
        if isinstance(value, Size) and (size := value.modern) != value.text:
            text = f"the next release does not know this unit: write {size!r}"
            yield f"{spelt(place)}: found {value.text!r}: {text}"
        elif place[0] == "upstreams" and place[2] in _GLOBS and is_old(value):
            yield f"{spelt(place[:-1])}: found {value!r}: in the next release {_instead(value)}"


def _instead(glob: str) -> str:
    before, star = glob[:-1], glob[-1:]
    if star == "*" and not is_glob(before) and "[" not in before and before[-1:] in {"", "/"}:
        return f"* matches no slash: write {before + '**'!r}"
    return "* and ? match no slash, and [ is not special: rewrite it with ** between slashes"


def _values(value: Any, place: Place) -> Iterator[tuple[Place, Any]]:
    if isinstance(value, BaseModel):
        value = {name: getattr(value, name) for name in type(value).model_fields}
    elif isinstance(value, tuple):
        value = {str(number): each for number, each in enumerate(value)}
    if not isinstance(value, dict):
        yield place, value
        return
    for name, each in value.items():
        yield from _values(each, (*place, name))
