"""Reads configuration files of the examined machine, below a root directory."""

import json
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class UnusableFileError(Exception):
    """A file exists but cannot be used; the message is the reason, one line."""


@dataclass(frozen=True, slots=True)
class Tree:
    """The files of a machine; all paths are paths on that machine.

    ``home`` is the home directory of the user who runs clients without root.
    """

    root: Path
    home: str = "/root"

    def at(self, path: str) -> Path:
        """Return the path of a file for this process."""
        return self.root / path.removeprefix("/")

    def exists(self, path: str) -> bool:
        try:
            return self.at(path).exists()
        except OSError:  # no permission for a parent directory
            return False

    def names(self, path: str) -> list[str]:
        """Return the sorted names in a directory; empty if it cannot be read."""
        try:
            return sorted(entry.name for entry in self.at(path).iterdir())
        except OSError:
            return []

    def certificates(self, *directories: str) -> tuple[str, ...]:
        """Return the files with CAs in directories, as paths for this process."""
        return tuple(
            str(self.at(f"{directory}/{name}"))
            for directory in directories
            for name in self.names(directory)
            if name.endswith(".crt")
        )

    def text(self, path: str) -> str | None:
        """Return the text of a file, None if it does not exist.

        Raises:
            UnusableFileError: the file cannot be read, or is not UTF-8.
        """
        try:
            return self.at(path).read_text(encoding="utf-8")
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise UnusableFileError(f"cannot be read: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise UnusableFileError("is not UTF-8 text") from error

    def toml(self, path: str) -> dict[str, Any] | None:
        """Return the tables of a TOML file, None if it does not exist.

        Raises:
            UnusableFileError: the file cannot be read, or is not TOML.
        """
        text = self.text(path)
        try:
            return None if text is None else tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise UnusableFileError(f"is not valid TOML: {error}") from error

    def json(self, path: str) -> dict[str, Any] | None:
        """Return the object in a JSON file, None if the file is empty or does not exist.

        Raises:
            UnusableFileError: the file cannot be read, or is not a JSON object.
        """
        text = self.text(path)
        if text is None or not text.strip():  # dockerd treats an empty file as missing
            return None
        try:
            value = json.loads(text)
        except ValueError as error:
            raise UnusableFileError(f"is not valid JSON: {error}") from error
        if not isinstance(value, dict):
            raise UnusableFileError("is not a JSON object")
        return value


def table(value: object, *keys: str) -> dict[str, Any]:
    """Return the table below ``keys``; empty if it does not exist."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}


def strings(value: object) -> list[str]:
    """Return the strings in a list; empty for other values."""
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []


def tables(value: object) -> list[dict[str, Any]]:
    """Return the tables in an array of tables; empty for other values."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
