"""`mirror doctor` as a person meets it."""

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from mirror.cli.clients import app
from tests.peers.process import free_port


@pytest.fixture(autouse=True)
def no_configuration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "mirror.toml").touch()
    monkeypatch.setenv("MIRROR_CONFIG", str(tmp_path / "mirror.toml"))
    monkeypatch.setenv("HOME", "/home/me")


def doctor(root: Path, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["doctor", "--root", str(root), *arguments])


def test_what_is_wrong_and_how_to_fix_it_are_lines_and_the_exit_code_is_1(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    said = doctor(tmp_path, "--url", url)
    assert said.exit_code == 1
    lines = said.stdout.splitlines()
    assert lines[0].startswith("wrong  this machine: ")
    assert lines[1] == f"       fix: mirror client docker --url {url}"
    assert lines[2].startswith(f"wrong  {url}: cannot be reached: connection refused")
    assert lines[-1] == f"the mirror {url}: 2 wrong"


def test_a_password_in_an_address_is_not_repeated(tmp_path: Path) -> None:
    file = tmp_path / "etc/docker/daemon.json"
    file.parent.mkdir(parents=True)
    file.write_text('{"registry-mirrors": ["http://me:hunter2@127.0.0.1:1"]}')
    said = doctor(tmp_path, "--url", "http://127.0.0.1:1")
    assert "no user and password may stand there" in said.stdout
    assert "hunter2" not in said.output


def test_the_configuration_of_a_user_counts_too(tmp_path: Path) -> None:
    file = tmp_path / "home/me/.config/containers/registries.conf"
    file.parent.mkdir(parents=True)
    file.write_text("[[registry]")
    said = doctor(tmp_path, "--url", "http://127.0.0.1:1").stdout
    assert "/home/me/.config/containers/registries.conf: is not valid TOML" in said


def test_a_url_that_is_none_is_a_wrong_command_line(tmp_path: Path) -> None:
    assert doctor(tmp_path, "--url", "m.lan").exit_code == 2
