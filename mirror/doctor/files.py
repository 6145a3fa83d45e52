"""Configuration files of the machine that is examined, below a root directory."""

import json
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class UnusableFileError(Exception):
    """A file is there and cannot be used; one line that says why."""


@dataclass(frozen=True, slots=True)
class Tree:
    """The files of a machine; paths are as that machine sees them.

    ``home`` is that of whoever runs clients without root.
    """

    root: Path
    home: str = "/root"

    def at(self, path: str) -> Path:
        """Where a file of the machine is for us."""
        return self.root / path.removeprefix("/")

    def exists(self, path: str) -> bool:
        """Whether there is a file or directory."""
        try:
            return self.at(path).exists()
        except OSError:  # below a directory that we may not enter
            return False

    def names(self, path: str) -> list[str]:
        """What is in a directory, in order; nothing where there is none."""
        try:
            return sorted(entry.name for entry in self.at(path).iterdir())
        except OSError:
            return []

    def text(self, path: str) -> str | None:
        """A file's text, None where there is no such file.

        Raises:
            UnusableFileError: it cannot be read, or is no text.
        """
        try:
            return self.at(path).read_text(encoding="utf-8")
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise UnusableFileError(f"cannot be read: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise UnusableFileError("is no UTF-8 text") from error

    def toml(self, path: str) -> dict[str, Any] | None:
        """A file's tables, None where there is no such file.

        Raises:
            UnusableFileError: it cannot be read, or is no TOML.
        """
        text = self.text(path)
        try:
            return None if text is None else tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise UnusableFileError(f"is no valid TOML: {error}") from error

    def json(self, path: str) -> dict[str, Any] | None:
        """A file's object, None where there is no such file.

        Raises:
            UnusableFileError: it cannot be read, or is no JSON object.
        """
        text = self.text(path)
        if text is None or not text.strip():  # dockerd takes an empty file for none
            return None
        try:
            value = json.loads(text)
        except ValueError as error:
            raise UnusableFileError(f"is no valid JSON: {error}") from error
        if not isinstance(value, dict):
            raise UnusableFileError("is no JSON object")
        return value


def table(value: object, *keys: str) -> dict[str, Any]:
    """The table below ``keys``; an empty one where there is none."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}


def strings(value: object) -> list[str]:
    """The strings of a list; none where it is no list."""
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []


def tables(value: object) -> list[dict[str, Any]]:
    """The tables of an array of tables; none where it is no such thing."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
