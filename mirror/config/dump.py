"""The configuration as TOML again, defaults filled in and secrets masked."""

import json
from pathlib import Path
from typing import Any

from mirror.config.model import Config
from mirror.config.secrecy import MASK, masked


def dump_toml(config: Config) -> str:
    """TOML that ``load`` would read the same way, but for the secrets."""
    lines: list[str] = []
    for name in type(config).model_fields:
        if name == "upstreams":
            continue
        lines += [f"[{name}]", *_keys(getattr(config, name)), ""]
    for name, upstream in config.upstreams.items():
        lines += [f"[upstreams.{json.dumps(name)}]", *_keys(upstream), ""]
    return "\n".join(lines)


def _keys(table: Any) -> list[str]:
    values = table.model_dump()
    if "password" in values:
        values["password"] = MASK if values["password"].get_secret_value() else ""
    return [f"{key} = {_value(value)}" for key, value in values.items()]


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple | list):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    # A JSON string is a TOML basic string, but for the one control character JSON lets through.
    text = masked(str(value)) if isinstance(value, Path | str) else value
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
