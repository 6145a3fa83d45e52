"""The version of a client, as its own program tells it."""

from pathlib import Path

import pytest

from mirror.doctor import containerd_version


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo containerd v2.2.1", "containerd v2.2.1\n"),
        ("exit 3", ""),
        ("printf '\\377'", ""),
        (None, ""),
    ],
    ids=["a version", "an error", "no text", "no program"],
)
def test_containerd_is_asked_for_its_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str | None, said: str
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    if script is not None:
        program = tmp_path / "containerd"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
    assert containerd_version() == said
