"""The reference of all keys in docs/configuration.md, made from the code and config/mirror.toml.

`python -m tools.configuration_reference` writes the page: keys, defaults and restarts from the
typed tree, the allowed values from the messages of `mirror check`, the reasons from
config/mirror.toml.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel

from mirror.config import Config, UpstreamConfig, load
from mirror.config.changes import FIXED
from mirror.config.dump import rendered
from mirror.config.policy import BlockRule, KeepRule, PinRule, PolicyRule
from mirror.config.warm import WarmConfig
from mirror.user_error import UserError

_ROOT: Final = Path(__file__).parents[1]
PAGE: Final = _ROOT / "docs" / "configuration.md"
SAMPLE: Final = _ROOT / "config" / "mirror.toml"
_MARK: Final = (
    "<!-- Generated below this line by `make docs`; edit config/mirror.toml instead. -->\n"
)
_UPSTREAM: Final = "docker.io"
_KEY: Final = re.compile(r"([a-z_]+) = (.+)")
_ENTRIES: Final[dict[str, type[BaseModel]]] = {
    "upstreams": UpstreamConfig,
    "keep": KeepRule,
    "block": BlockRule,
    "pin": PinRule,
    "policy": PolicyRule,
    "warm": WarmConfig,
}
#: The keys without a default.
_REQUIRED: Final[dict[str, dict[str, object]]] = {
    "keep": {"images": ["alpine"]},
    "block": {"image": "alpine"},
    "policy": {"images": ["alpine"]},
    "pin": {"image": "alpine", "digest": f"sha256:{'0' * 64}"},
    "warm": {"images": ["alpine"]},
}
#: Wrong for every key of one type or another, the general mistakes first.
_PROBES: Final[tuple[object, ...]] = ({}, -1, "?", ["?"], [], ["a b"], "10%", "1", "0s", "1s", 2)
_GENERAL: Final = re.compile(
    r"a text in quotes|a list of texts|a size such as .*|a time such as .*|a whole number|a table"
    r"|Input should be .*"
)
_REASON: Final = re.compile(r" \((?:No such file|'\?' is).*\)")  # what is wrong with the probe


@dataclass(frozen=True)
class Key:
    """A key as ``config/mirror.toml`` shows it."""

    name: str
    value: str
    why: str


@dataclass
class Section:
    """A table of the file: its header, the comment above it, its keys."""

    header: str
    about: str
    keys: list[Key]

    @property
    def name(self) -> str:
        return self.header.strip("[]").partition(".")[0]

    @property
    def model(self) -> type[BaseModel]:
        annotation: Any = _ENTRIES.get(self.name) or Config.model_fields[self.name].annotation
        return annotation  # type: ignore[no-any-return]  # the annotation of a table is a model


def sections() -> list[Section]:
    """The tables of ``config/mirror.toml``, one of the upstreams for all."""
    found: list[Section] = []
    comment: list[str] = []
    for line in _uncommented(SAMPLE.read_text(encoding="utf-8").splitlines()):
        if line.startswith("["):
            found.append(Section(line, " ".join(comment).strip(), []))
            comment = []
        elif matched := _KEY.fullmatch(line):
            found[-1].keys.append(Key(matched[1], matched[2], " ".join(comment)))
            comment = []
        elif line.startswith("#"):
            comment.append(line.lstrip("# "))
        elif line or not found:
            comment = []
    return found[: [each.name for each in found].index("upstreams") + 1]


def _uncommented(lines: list[str]) -> Iterator[str]:
    """The lines of the file; the tables that it shows as comments like the others."""
    shown = False
    for line in lines:
        shown = line.startswith("# [[") or (shown and line.startswith("#"))
        yield line.removeprefix("#").removeprefix(" ") if shown else line


def allowed(section: Section, key: str) -> str:
    """What `mirror check` says is allowed for a key."""
    messages: list[str] = []
    for probe in _PROBES:
        messages += [text for text in _messages(section, key, probe) if text not in messages]
    precise = [text for text in messages if not _GENERAL.fullmatch(text)]
    text = precise[0] if precise else messages[-1]
    return f"a list: {text}" if precise and "a list of texts" in messages else text


def _messages(section: Section, key: str, value: object) -> Iterator[str]:
    table: dict[str, object] = {key: value}
    tree: dict[str, Any] = {section.name: table}
    place = f"{section.name}.{key}"
    if section.name == "upstreams":
        tree[section.name] = {_UPSTREAM: table}
        place = f'{section.name}."{_UPSTREAM}".{key}'
    elif section.header.startswith("[["):
        tree[section.name] = [{**_REQUIRED[section.name], **table}]
        place = f"{section.name}.0.{key}"
    try:
        load(Path(os.devnull), tree)
    except UserError as error:
        for line in str(error).splitlines():
            if line.startswith(f"command line: {place}") and ", allowed: " in line:
                yield _REASON.sub("", line.partition(", allowed: ")[2])


def _default(section: Section, key: Key) -> str:
    field = section.model.model_fields[key.name]
    if field.is_required():
        return "required"
    if section.name != "upstreams":
        return f"`{key.value}`"
    plain = UpstreamConfig(url="https://registry.example.com").model_dump()
    return f"`{rendered(plain[key.name])}`"


def _variable(section: Section, key: str) -> str:
    if section.header.startswith("[["):
        return ""
    middle = "NAME__" if section.name == "upstreams" else ""
    return f"<br>`MIRROR_{section.name.upper()}__{middle}{key.upper()}`"


def _escaped(text: str) -> str:
    return re.sub(r"([|*<_\[\]])", r"\\\1", text)


def _rows(section: Section) -> Iterator[str]:
    for key in section.keys:
        restart = "<br>(restart)" if (section.name, key.name) in FIXED else ""
        cells = (
            f"`{key.name}`{_variable(section, key.name)}{restart}",
            _default(section, key),
            _escaped(allowed(section, key.name)),
            _escaped(key.why),
        )
        yield f"| {' | '.join(cells)} |"


def reference() -> str:
    """All tables as Markdown."""
    lines: list[str] = []
    for section in sections():
        header = '[upstreams."NAME"]' if section.name == "upstreams" else section.header
        lines += [f"## `{header}`", ""]
        lines += [_escaped(section.about), ""] if section.about else []
        lines += ["| key | default | allowed | why change it |", "|---|---|---|---|"]
        lines += [*_rows(section), ""]
    return "\n".join(lines).rstrip() + "\n"


def page() -> str:
    """The page: the introduction as it stands, and the reference."""
    return PAGE.read_text(encoding="utf-8").partition(_MARK)[0] + _MARK + "\n" + reference()


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
