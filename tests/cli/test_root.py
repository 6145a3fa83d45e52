"""The command as a person meets it: what it prints where, and how it ends."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from mirror import __version__
from mirror.cli.root import app
from mirror.user_error import ExitCode
from tests.waiting import LIMIT_SECONDS

pytestmark = [pytest.mark.slow]


def mirror(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MIRROR_")} | variables
    return subprocess.run(
        [sys.executable, "-m", "mirror", *arguments],
        env=environment, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False,
    )  # fmt: skip


@pytest.fixture
def wrong(tmp_path: Path) -> str:
    file = tmp_path / "mirror.toml"
    file.write_text('[server]\nlisten = "nope"\n[cache]\nmax_size = "lots"\n')
    return str(file)


@pytest.mark.long
@pytest.mark.parametrize("option", ["--version", "-V"])
def test_version_is_told(option: str) -> None:
    told = mirror(option)
    assert (told.returncode, told.stdout) == (0, f"mirror {__version__}\n")


def test_the_help_groups_the_commands_and_cuts_no_summary_off() -> None:
    told = mirror("--help", COLUMNS="80").stdout
    assert "..." not in told.partition("Mirror:")[2]
    assert max(map(len, told.splitlines())) <= 80
    panels = re.findall(r"^(\w+):$", told, re.MULTILINE)
    assert panels == ["Options", "Mirror", "Cache", "Clients", "Images", "Policies"]
    summary = "Run the mirror until SIGTERM or Ctrl-C; SIGHUP reloads its configuration."
    assert summary in " ".join(told.split())


def test_the_help_of_a_command_names_no_type_of_python() -> None:
    group: Any = typer.main.get_command(app)
    commands = [[name] for name in group.commands]
    commands += [["client", name] for name in group.commands["client"].commands]
    for command in commands:
        told = CliRunner().invoke(app, [*command, "--help"]).stdout
        values = re.findall(r"^  -\S+(?:, --\S+)? (\S+) ", told, re.MULTILINE)
        assert not [each for each in values if re.search("str|int|path|bool", each)], command


@pytest.mark.long
def test_a_shell_completes_commands_and_options(tmp_path: Path) -> None:
    names = {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1", "HOME": str(tmp_path)}
    shown = mirror("--show-completion", "zsh", **names)
    assert (shown.returncode, "_MIRROR_COMPLETE" in shown.stdout) == (0, True)
    assert mirror("--install-completion", "fish", **names).returncode == 0
    assert list(tmp_path.rglob("mirror.fish"))
    asked = {"_MIRROR_COMPLETE": "complete_bash", "COMP_CWORD": "1"}
    assert mirror(COMP_WORDS="mirror ver", **asked).stdout.split() == ["verify"]
    asked["COMP_CWORD"] = "2"
    assert mirror(COMP_WORDS="mirror serve --max", **asked).stdout.split() == ["--max-size"]


def test_check_prints_the_whole_configuration() -> None:
    checked = mirror("check", MIRROR_SERVER__LISTEN=":5001")
    assert (checked.returncode, checked.stderr) == (0, "")
    assert tomllib.loads(checked.stdout)["server"]["listen"] == ":5001"


@pytest.mark.long
@pytest.mark.parametrize("command", [("check",), ("serve",), ("client", "docker")])
def test_every_command_tells_mistakes_one_per_line_and_ends_with_2(
    command: tuple[str, ...], wrong: str
) -> None:
    failed = mirror(*command, "--config", wrong)
    assert (failed.returncode, failed.stdout) == (2, "")
    listen, max_size = failed.stderr.splitlines()
    assert listen.startswith(f"mirror: {wrong}: server.listen: found 'nope', allowed: ")
    assert max_size.startswith(f"mirror: {wrong}: cache.max_size: found 'lots', allowed: ")


@pytest.mark.parametrize("command", ["check", "serve"])
@pytest.mark.parametrize(
    ("key", "what"),
    [
        ("MIRROR_FETCH__CA_FILE", "upstream docker.io: ca_file cannot be used: it holds no cert"),
        ("MIRROR_ACCESS__HTPASSWD_FILE", "line 1 is not a user with a bcrypt hash"),
    ],
)
def test_check_finds_what_the_start_would_find_in_the_files(
    command: str, key: str, what: str, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("nothing of use")
    environment = {key: str(tmp_path / "file"), "MIRROR_CACHE__DIRECTORY": str(tmp_path / "cache")}
    failed = mirror(command, **environment)
    assert (failed.returncode, failed.stdout) == (1, "")
    (line,) = failed.stderr.splitlines()
    assert what in line


def test_flags_of_serve_are_checked_like_keys() -> None:
    failed = mirror("serve", "--listen", "nope", "--max-size", "lots", "--cache-dir", "")
    assert failed.returncode == 2
    assert {line.split(": ")[2] for line in failed.stderr.splitlines()} >= {
        "server.listen",
        "cache.max_size",
    }
    assert failed.stderr.count("mirror: command line: ") == len(failed.stderr.splitlines())


@pytest.mark.parametrize("name", ["file", "x" * 300])
def test_a_cache_directory_that_cannot_be_is_one_line_and_1(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    failed = mirror("serve", "--cache-dir", str(tmp_path / name), "--listen", "127.0.0.1:0")
    assert failed.returncode == 1
    (line,) = failed.stderr.splitlines()
    assert line.startswith("mirror: the cache directory ")


@pytest.mark.long
@pytest.mark.parametrize("arguments", [("serve", "--nope"), ("nope",), ("client", "nope"), ()])
def test_a_wrong_command_line_is_told_without_a_traceback(arguments: tuple[str, ...]) -> None:
    failed = mirror(*arguments)
    assert failed.returncode == 2
    assert "Usage: mirror" in failed.stderr + failed.stdout
    assert "Traceback" not in failed.stderr


def test_the_snippet_for_docker_is_json_and_its_advice_is_apart() -> None:
    shown = mirror("client", "docker", "--url", "http://m.lan:5000/")
    assert shown.returncode == 0
    assert json.loads(shown.stdout)["registry-mirrors"] == ["http://m.lan:5000"]
    assert "/etc/docker/daemon.json" in shown.stderr
    assert all(line.startswith("# ") for line in shown.stderr.splitlines())


@pytest.mark.long
@pytest.mark.parametrize("url", ["m.lan:5000", "http://m.lan/path", "http://me:hunter2@m.lan"])
def test_an_address_that_docker_would_refuse_is_refused(url: str) -> None:
    failed = mirror("client", "docker", "--url", url)
    assert (failed.returncode, failed.stdout) == (2, "")
    assert "hunter2" not in failed.stderr


def test_mistakes_in_names_and_in_a_list_of_names_are_told_together(tmp_path: Path) -> None:
    names = tmp_path / "images.txt"
    names.write_text("alpine\nhttp://alpine\n")
    failed = mirror("warm", "UPPER", "--file", str(names), "--cache-dir", str(tmp_path / "cache"))
    assert (failed.returncode, failed.stdout) == (2, "")
    typed, listed = failed.stderr.splitlines()
    assert typed.startswith("mirror: ")
    assert listed.startswith(f"mirror: {names}:2: an image is named without a scheme")


@pytest.mark.long
def test_a_failure_below_the_command_is_one_line_and_1(tmp_path: Path) -> None:
    for command in ("ls", "stats", "verify"):
        failed = mirror(command, "--cache-dir", str(tmp_path / "nowhere"))
        assert (failed.returncode, failed.stdout) == (1, "")
        (line,) = failed.stderr.splitlines()
        assert line.startswith("mirror: the cache directory ")


def test_the_operations_page_explains_each_exit_code() -> None:
    page = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    rows = page.partition("## Exit codes")[2].splitlines()
    told = {int(row.split("|")[1]) for row in rows if row.startswith("| ") and row[2].isdigit()}
    assert told == {0, *ExitCode}


def test_the_configuration_of_clients_names_registries_without_tls(tmp_path):
    file = tmp_path / "mirror.toml"
    file.write_text('[upstreams."registry.lan:5000"]\nurl = "http://registry.lan:5000"\n')
    said = CliRunner().invoke(app, ["client", "containerd", "--config", str(file)]).stdout
    assert 'server = "http://registry.lan:5000"' in said
    assert 'server = "https://ghcr.io"' in said
