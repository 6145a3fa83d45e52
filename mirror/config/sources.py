"""Loads the configuration: defaults, overridden by the file, the environment and flags.

pydantic-settings reads the environment.  This module also records the source of each key, so that
the message for a mistake is one line that names it.
"""

import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, EnvSettingsSource, SettingsConfigDict

from mirror.config.addresses import checked_name
from mirror.config.mistakes import line, told
from mirror.config.model import Config, UpstreamConfig
from mirror.config.policy import unknown_registries
from mirror.config.upstreams import (
    WELL_KNOWN,
    disagreements,
    taking_credentials,
    well_known,
    with_default,
)
from mirror.user_error import ExitCode, UserError

Tree = dict[str, Any]
Origins = dict[tuple[str, ...], str]

SYSTEM_FILE: Final = Path("/etc/mirror/mirror.toml")
_PREFIX: Final = "MIRROR_"
_DELIMITER: Final = "__"
_INTEGER_BITS: Final = 64  # of TOML, with the sign
_FLAT: Final = re.compile(r"[a-z0-9_]*", re.ASCII)


class _Environment(Config, BaseSettings):
    """Tells pydantic-settings the names of the variables; their values are checked later."""

    model_config = SettingsConfigDict(env_prefix=_PREFIX, env_nested_delimiter=_DELIMITER)


class _Variables(EnvSettingsSource):
    """Reads the environment; a value that is not JSON is reported later with other mistakes."""

    def decode_complex_value(self, field_name: str, field: FieldInfo, value: Any) -> Any:
        """Decode a table or a list from JSON, or a list from text with commas.

        Return other text unchanged.
        """
        try:
            return super().decode_complex_value(field_name, field, value)
        except (ValueError, RecursionError):
            if get_origin(field.annotation) is not tuple or value.lstrip()[:1] in {"[", "{"}:
                return value
            return [part.strip() for part in value.split(",")]


def load(file: Path | None = None, flags: Mapping[str, Any] | None = None) -> Config:
    """Read the configuration.

    Args:
        file: the file to read; None: ``$MIRROR_CONFIG``, else the system's file if it exists.
        flags: the values from the command line, as a tree.

    Raises:
        UserError: the configuration is invalid; the error lists all mistakes.
    """
    chosen = file or _file_of_environment()
    told_by_file = _read(chosen) if chosen else {}
    layers: list[tuple[str, Mapping[str, Any]]] = [
        ("default", {"upstreams": well_known(_names(told_by_file))}),
        (str(chosen), told_by_file),
        ("environment", _environment(_names({"upstreams": WELL_KNOWN}, told_by_file))),
        ("command line", flags or {}),
    ]
    tree: Tree = {}
    origins: Origins = {}
    for origin, layer in layers:
        _merge(tree, layer, origin, origins)
    return _checked(tree, origins)


def _file_of_environment() -> Path | None:
    if named := os.environ.get("MIRROR_CONFIG"):
        return Path(named)
    return SYSTEM_FILE if SYSTEM_FILE.exists() else None


def _read(file: Path) -> Tree:
    try:
        tree = tomllib.loads(file.read_text(encoding="utf-8"))
        if not _is_too_large(tree):
            return tree
        reason = "is not TOML: a number has more than 64 bits"
    except OSError as error:
        reason = f"cannot be read: {error.strerror}"
    except UnicodeDecodeError as error:
        number = error.object.count(b"\n", 0, error.start) + 1
        reason = f"is not TOML: no UTF-8 (at line {number})"
    except RecursionError:
        reason = "is not TOML: nested too deeply"
    except ValueError as error:  # also the interpreter's, for a number of thousands of digits
        reason = f"is not TOML: {error}"
    raise UserError(f"{file}: {reason}", ExitCode.USAGE)


def _is_too_large(value: Any) -> bool:
    if isinstance(value, dict | list):
        parts = value.values() if isinstance(value, dict) else value
        return any(map(_is_too_large, parts))
    return isinstance(value, int) and value.bit_length() >= _INTEGER_BITS


def _environment(known: Iterable[str]) -> Tree:
    tree: Tree = _Variables(_Environment)()
    # Only names with the delimiter: Kubernetes sets MIRROR_PORT and more for a service "mirror".
    for variable in os.environ:
        section, delimiter, _ = variable.upper().removeprefix(_PREFIX).partition(_DELIMITER)
        if delimiter and variable.upper().startswith(_PREFIX):
            tree.setdefault(section.lower(), {})
    if isinstance(tables := tree.get("upstreams"), dict):
        tree["upstreams"] = _spelt_out(tables, known)
    return tree


def _spelt_out(tables: Tree, known: Iterable[str]) -> Tree:
    """Restore the names of registries: an environment variable has ``docker_io``."""
    dotted = [name for name in (*tables, *known) if not _FLAT.fullmatch(name)]
    names = {re.sub(r"[^a-z0-9]", "_", name): name for name in dotted}
    spelt: Tree = {}
    for name, table in tables.items():
        _merge(spelt, {names.get(name, name): table}, "", {})
    return spelt


def _names(*trees: Mapping[str, Any]) -> list[str]:
    tables = [tree.get("upstreams") for tree in trees]
    return [name for table in tables if isinstance(table, Mapping) for name in table]


def _merge(
    tree: Tree,
    layer: Mapping[str, Any],
    origin: str,
    origins: Origins,
    path: tuple[str, ...] = (),
) -> None:
    for key, value in layer.items():
        place = (*path, key)
        origins[place] = origin
        if isinstance(value, Mapping):
            below = tree.get(key)
            tree[key] = dict(below) if isinstance(below, dict) else {}
            _merge(tree[key], value, origin, origins, place)
        else:
            tree[key] = value


def _checked(tree: Tree, origins: Origins) -> Config:
    problems: list[str] = []
    try:
        config = Config.model_validate(tree)
    except ValidationError as error:
        problems += told(error, origins)
    upstreams = with_default(_valid_upstreams(tree))
    problems += [
        line(place, text, origins) for place, text in disagreements(upstreams, whole=not problems)
    ]
    if not problems and config.access.htpasswd_file and (taking := taking_credentials(upstreams)):
        text = (
            f"found a file, but {taking[0]} has client_credentials = true, and a client sends one "
            "password only, allowed: either of them"
        )
        problems.append(line(("access", "htpasswd_file"), text, origins))
    if problems:
        raise UserError("\n".join(problems), ExitCode.USAGE)
    config = config.model_copy(update={"upstreams": upstreams})
    problems += [line(place, text, origins) for place, text in unknown_registries(config)]
    if problems:
        raise UserError("\n".join(problems), ExitCode.USAGE)
    return config


def _valid_upstreams(tree: Tree) -> dict[str, UpstreamConfig]:
    """Return the tables that are valid by themselves, to check the rules between them."""
    tables = tree.get("upstreams")
    valid: dict[str, UpstreamConfig] = {}
    for name, table in tables.items() if isinstance(tables, dict) else ():
        try:
            valid[checked_name(name)] = UpstreamConfig.model_validate(table)
        except ValueError:
            continue
    return valid
