"""``mirror ca``: the certificate on stdout, advice on stderr, one line when it fails."""

import pytest
from cryptography import x509
from typer.testing import CliRunner

from mirror.ca import ensure_authority
from mirror.cli.root import app

pytestmark = [pytest.mark.slow]


def run(*arguments: str):
    return CliRunner().invoke(app, ["ca", *arguments])


def test_it_prints_the_ca_that_the_mirror_uses(tmp_path):
    said = run("--cache-dir", str(tmp_path / "cache"))
    assert said.exit_code == 0
    kept = ensure_authority(tmp_path / "cache-state", "mirror")
    assert x509.load_pem_x509_certificate(said.stdout.encode()) == kept.certificate
    assert run("--cache-dir", str(tmp_path / "cache")).stdout == said.stdout
    for word in (
        "update-ca-certificates",
        "/etc/docker/certs.d",
        "containerd",
        "Proxy mode is off",
    ):
        assert word in said.stderr


def test_it_leaves_a_ca_of_a_former_version_where_it_is(tmp_path):
    former = ensure_authority(tmp_path / "cache" / "proxy", "mirror")
    said = run("--cache-dir", str(tmp_path / "cache"))
    assert said.stdout == former.public_pem().decode()
    assert (tmp_path / "cache" / "proxy" / "ca.pem").exists()
    assert not (tmp_path / "cache-state").exists()


def test_the_configuration_says_where_it_is(tmp_path):
    config = tmp_path / "mirror.toml"
    config.write_text(f'[proxy]\nlisten = ":3128"\nca_directory = "{tmp_path}/ca"\n')
    said = run("--config", str(config))
    assert said.exit_code == 0
    assert (tmp_path / "ca" / "ca.pem").exists()
    assert "off" not in said.stderr


def test_what_fails_is_one_line(tmp_path):
    (tmp_path / "cache").write_text("")
    (tmp_path / "cache-state").write_text("")
    said = run("--cache-dir", str(tmp_path / "cache"))
    assert (said.exit_code, said.stdout) == (1, "")
    assert said.stderr.startswith("mirror: ")
    assert said.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "toml",
    [
        'listen = "3128"',
        'listen = ["nowhere"]',
        "tunnels = 0",
        'idle_timeout = "0s"',
        'allow = ["a/b"]',
        'allow = [""]',
        'allow = ["a:http"]',
    ],
)
def test_a_mistake_in_the_configuration_is_told(tmp_path, toml):
    config = tmp_path / "mirror.toml"
    config.write_text(f"[proxy]\n{toml}\n")
    said = run("--config", str(config))
    assert said.exit_code == 2
    assert f"{config}: proxy.{toml.partition(' ')[0]}" in said.stderr
