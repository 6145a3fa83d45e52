"""``config/mirror.toml`` and the code say the same."""

import tomllib
from pathlib import Path

import pytest

from mirror.config import load
from mirror.config.dump import dump_toml
from mirror.config.upstreams import WELL_KNOWN

SAMPLE = Path(__file__).parents[2] / "config" / "mirror.toml"


@pytest.fixture(autouse=True)
def as_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sample shows root's cache directory."""
    monkeypatch.setattr("os.geteuid", lambda: 0)


def test_the_sample_says_what_the_defaults_are() -> None:
    assert dump_toml(load(SAMPLE)) == dump_toml(load())


def test_the_sample_has_every_key() -> None:
    sample = tomllib.loads(SAMPLE.read_text(encoding="utf-8"))
    dumped = tomllib.loads(dump_toml(load()))
    assert set(sample["upstreams"]) == set(WELL_KNOWN)
    for section, table in dumped.items():
        if section != "upstreams":
            assert sample[section] == table
    assert sample["upstreams"]["docker.io"] == dumped["upstreams"]["docker.io"]


def test_every_key_of_the_sample_says_why_to_change_it() -> None:
    lines = SAMPLE.read_text(encoding="utf-8").splitlines()
    start = lines.index("[server]")
    end = lines.index('[upstreams."mcr.microsoft.com"]')
    keys = [number for number in range(start, end) if " = " in lines[number]]
    assert len(keys) > 20
    assert [lines[number] for number in keys if not lines[number - 1].startswith("# ")] == []


def test_what_the_sample_shows_of_a_list_to_warm_up_is_all_there_is(tmp_path: Path) -> None:
    lines = SAMPLE.read_text(encoding="utf-8").splitlines()
    start = lines.index("# [[warm]]")
    end = lines.index("", start)
    shown = tomllib.loads("\n".join(line.removeprefix("# ") for line in lines[start:end]))
    file = tmp_path / "mirror.toml"
    images = shown["warm"][0]["images"]
    file.write_text(f"[[warm]]\nimages = {images}\n", encoding="utf-8")
    dumped = tomllib.loads(dump_toml(load(file)))
    assert dumped["warm"] == shown["warm"]
