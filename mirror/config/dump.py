"""Writes the configuration as TOML, with defaults filled in and secrets masked."""

import json
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from mirror.config.fields import MASK, masked
from mirror.config.model import Config


def dump_toml(config: Config) -> str:
    """Return TOML from which ``load`` reads the same configuration, except for the secrets."""
    lines: list[str] = []
    for name in type(config).model_fields:
        if name == "upstreams":
            continue
        table = getattr(config, name)
        for entry in table if isinstance(table, tuple) else ():
            lines += [f"[[{name}]]", *_keys(entry), ""]
        if not isinstance(table, tuple):
            lines += [f"[{name}]", *_keys(table), ""]
    for name, upstream in config.upstreams.items():
        lines += [f"[upstreams.{json.dumps(name)}]", *_keys(upstream), ""]
    return "\n".join(lines)


def _keys(table: Any) -> list[str]:
    return [f"{key} = {rendered(value)}" for key, value in table.model_dump().items()]


def rendered(value: Any) -> str:
    """Return a value as TOML, with masked secrets."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, SecretStr):
        value = MASK if value.get_secret_value() else ""
    if isinstance(value, tuple | list):
        return "[" + ", ".join(rendered(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(_inline(key, item) for key, item in value.items()) + "}"
    return _text(masked(str(value)) if isinstance(value, Path | str) else value)


def _inline(key: str, value: Any) -> str:
    # The @ in the identity of a workflow follows no password.
    return f"{key} = {_text(value) if key == 'identity' else rendered(value)}"


def _text(value: Any) -> str:
    # A JSON string is a TOML basic string, except for DEL, which only JSON allows unescaped.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
