"""Fixtures of the configuration's tests."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

WriteToml = Callable[[str], Path]


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable of the machine that runs the tests says anything to the mirror."""
    for name in os.environ:
        if name.startswith("MIRROR_"):
            monkeypatch.delenv(name)


@pytest.fixture
def write_toml(tmp_path: Path) -> WriteToml:
    """Writes a configuration file and returns where it is."""

    def write(text: str) -> Path:
        file = tmp_path / "mirror.toml"
        file.write_text(text, encoding="utf-8")
        return file

    return write
