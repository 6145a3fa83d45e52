"""``mirror install-service``: what it writes below a root, and what it leaves alone."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from mirror.cli.root import app
from mirror.config import load
from mirror.config.dump import dump_toml
from tests.deploy.files import CONFIG
from tests.peers.requirements import need

PROGRAM = "/usr/local/lib/mirror/bin/mirror"


def installed(root: Path, *arguments: str, program: str = PROGRAM) -> list[str]:
    command = ["install-service", "--root", str(root), "--program", program, *arguments]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    return done.stdout.replace(str(root), "").splitlines()


def test_it_brings_user_configuration_and_unit_and_says_each(tmp_path):
    need("systemd-sysusers")
    assert installed(tmp_path) == [
        "write /etc/sysusers.d/mirror.conf",
        "write /etc/mirror/mirror.toml",
        "write /etc/systemd/system/mirror.service",
        "run systemd-sysusers --root= mirror.conf",
        "next: systemctl enable --now mirror",
    ]
    unit = (tmp_path / "etc/systemd/system/mirror.service").read_text()
    assert f"\nExecStart={PROGRAM} serve\n" in unit
    shipped = (CONFIG / "systemd" / "mirror.service").read_text()
    assert unit.replace(PROGRAM, "/opt/mirror/bin/mirror") == shipped
    assert (tmp_path / "etc/passwd").read_text().startswith("mirror:")
    file = tmp_path / "etc/mirror/mirror.toml"
    assert dump_toml(load(file)) == dump_toml(load())
    assert '\n#listen = "0.0.0.0:5000"\n' in file.read_text()


def test_a_second_run_changes_nothing_and_an_upgrade_keeps_the_configuration(tmp_path):
    need("systemd-sysusers")
    installed(tmp_path)
    file = tmp_path / "etc/mirror/mirror.toml"
    file.write_text("[tags]\nmax_age = '1h'\n")
    assert installed(tmp_path)[:3] == [
        "keep /etc/sysusers.d/mirror.conf",
        "keep /etc/mirror/mirror.toml",
        "keep /etc/systemd/system/mirror.service",
    ]
    moved = installed(tmp_path, program="/opt/new/bin/mirror")
    assert moved[2] == "replace /etc/systemd/system/mirror.service"
    assert moved[-1] == "next: systemctl restart mirror"
    assert load(file).tags.max_age.text == "1h"


def test_a_dry_run_writes_nothing(tmp_path):
    lines = installed(tmp_path, "--dry-run")
    assert lines[0] == "would write /etc/sysusers.d/mirror.conf"
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("program", "there", "said"),
    [
        ("/root/.local/bin/mirror", "", "is below /root, which the service cannot see"),
        (PROGRAM, "usr/lib/systemd/system/mirror.service", "the Debian package has installed"),
        (PROGRAM, "etc/sysusers.d", "cannot write"),
    ],
)
def test_what_cannot_be_is_one_line(tmp_path, program, there, said):
    if there:
        (tmp_path / there).parent.mkdir(parents=True)
        (tmp_path / there).touch()
    command = ["install-service", "--root", str(tmp_path), "--program", program]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 1
    (line,) = done.stderr.splitlines()
    assert said in line


def test_a_failure_of_systemd_is_told(tmp_path):
    need("systemd-sysusers")
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "passwd").mkdir()
    command = ["install-service", "--root", str(tmp_path), "--program", PROGRAM]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 1
    assert "mirror: systemd-sysusers failed: " in done.stderr


def test_without_systemd_the_line_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    command = ["install-service", "--root", str(tmp_path), "--program", PROGRAM]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 1
    assert done.stderr == "mirror: systemd-sysusers is not installed: this machine has no systemd\n"


def test_the_program_is_the_one_that_runs_if_the_service_can_see_it(tmp_path, monkeypatch):
    command = ["install-service", "--dry-run", "--root", str(tmp_path / "root")]
    monkeypatch.setattr("sys.prefix", "/opt/absent")
    absent = CliRunner().invoke(app, command)
    assert absent.stderr.startswith("mirror: /opt/absent/bin/mirror does not exist: ")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/mirror").touch()
    monkeypatch.setattr("sys.prefix", str(tmp_path))
    monkeypatch.setattr("sys.base_prefix", "/home/me/.local/share/uv/python")
    hidden = CliRunner().invoke(app, command)
    assert "is below /home, which the service cannot see" in hidden.stderr
