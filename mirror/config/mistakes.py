"""Messages for mistakes and old spellings: the source, the key, the value found, what is allowed.

Old spellings keep their meaning for one release, and are logged at the start: sizes in powers of
1000, and globs in ``allow`` and ``deny`` whose ``*`` matches slashes.
"""

import difflib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from mirror.config.fields import Size, masked
from mirror.config.model import Config, UpstreamConfig
from mirror.config.policy import BlockRule, IdentityRule, KeepRule, PinRule, PolicyRule
from mirror.config.warm import WarmConfig
from mirror.oci.image_glob import is_glob, is_old

Place = tuple[str, ...]

_BARE_KEY: Final = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)
_MAX_FOUND: Final = 120
_GLOBS: Final = frozenset({"allow", "deny"})
#: The tables inside a table of tables or a list of tables.
_ENTRIES: Final[Mapping[str, type[BaseModel]]] = {
    "upstreams": UpstreamConfig,
    "block": BlockRule,
    "identities": IdentityRule,
    "keep": KeepRule,
    "pin": PinRule,
    "policy": PolicyRule,
    "warm": WarmConfig,
}
_ALLOWED: Final[Mapping[str, str]] = {
    "bool_parsing": "true or false",
    "bool_type": "true or false",
    "dict_type": "a table",
    "finite_number": "a whole number",
    "float_parsing": "a share between 0 and 1, such as 0.1",  # the one key that is a float
    "float_type": "a share between 0 and 1, such as 0.1",
    "greater_than": "a whole number above zero",
    "greater_than_equal": "a whole number, zero or above",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "int_parsing_size": "a whole number",
    "int_type": "a whole number",
    "model_type": "a table",
    "path_type": "a directory",
    "string_type": "a text in quotes",
    "tuple_type": "a list of texts",
}


def told(error: ValidationError, origins: Mapping[Place, str]) -> list[str]:
    """Return one line per mistake that pydantic found; ``origins`` maps keys to their sources."""
    lines = []
    found = error.errors()
    unquoted = {each["loc"][:2] for each in found if _name_without_quotes(each)}
    for mistake in found:
        place = tuple(map(str, mistake["loc"]))
        if mistake["type"] == "missing" and mistake["loc"][:2] in unquoted:
            continue  # that is no upstream
        if place[-1] == "[key]" and mistake["type"] != "extra_forbidden":
            place = place[:-1]  # pydantic adds [key] if the name of a table is wrong
        lines.append(line(place, _what(mistake, place), origins))
    return lines


def line(place: Place, text: str, origins: Mapping[Place, str]) -> str:
    """Return the message for one mistake: its source, the key in TOML, the text."""
    around = (place[:end] for end in range(len(place), 0, -1))
    origin = next((origins[table] for table in around if table in origins), "default")
    return f"{origin}: {spelt(place)}: {text}"


def spelt(place: Place) -> str:
    """Return a key as written in TOML."""
    return ".".join(part if _BARE_KEY.fullmatch(part) else json.dumps(part) for part in place)


def _what(mistake: ErrorDetails, place: Place) -> str:
    if name := _name_without_quotes(mistake):
        return f"a name with dots needs quotes: [upstreams.{json.dumps(name)}]"
    if mistake["type"] == "extra_forbidden":
        return f"no such key{_nearest(place)}"
    if mistake["type"] == "missing":
        well_known = " (only well-known registries have one built in)"
        return f"is missing{well_known if place[0] == 'upstreams' else ''}"
    return f"found {_found(mistake, place)}, allowed: {_allowed(mistake, place)}"


def _name_without_quotes(mistake: ErrorDetails) -> str:
    """The name in ``[upstreams.docker.io]``, which TOML reads as tables in tables; "" otherwise."""
    place, table = mistake["loc"], mistake["input"]
    if mistake["type"] != "extra_forbidden" or place[0] != "upstreams" or len(place) != 3:
        return ""
    names = [*map(str, place[1:])]
    if not isinstance(table, dict):
        return ""
    while len(table) == 1 and isinstance(inner := next(iter(table.values())), dict):
        names.append(str(next(iter(table))))
        table = inner
    return ".".join(names)


def _found(mistake: ErrorDetails, place: Place) -> str:
    value = mistake["input"]
    if isinstance(value, dict):
        return "a table" if mistake["type"] in _ALLOWED else "these keys together"
    # A value in the place of a table may be a misspelt table that contains secrets.
    if place[-1] == "password" or mistake["type"] in {"dict_type", "model_type"}:
        return f"a value of type {type(value).__name__}"
    text = repr(value)
    return (text if place[-1] == "identity" else masked(text))[:_MAX_FOUND]


def _allowed(mistake: ErrorDetails, place: Place) -> str:
    context = mistake.get("ctx", {})
    if mistake["type"] == "value_error":
        return str(context["error"])
    if mistake["type"] == "literal_error":
        return str(context["expected"])
    if mistake["type"] == "tuple_type" and len(place) == 1:
        return f"tables, each below [[{place[0]}]]"
    if mistake["type"] == "tuple_type" and place[-1] in _ENTRIES:
        return f"a list of tables with {' and '.join(_ENTRIES[place[-1]].model_fields)}"
    return _ALLOWED.get(mistake["type"], "another value")


def _nearest(place: Place) -> str:
    keys = list(_keys_beside(place))
    nearest = difflib.get_close_matches(place[-1], keys, n=1)
    return f" (did you mean {nearest[0]}?)" if nearest else f" (there are: {', '.join(keys)})"


def _keys_beside(place: Place) -> Iterable[str]:
    table: Any = Config
    if len(place) > 1:
        table = (
            _ENTRIES.get(place[-3:][0])
            or _ENTRIES.get(place[0])
            or Config.model_fields[place[0]].annotation
        )
    return table.model_fields if issubclass(table, BaseModel) else ()


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
