"""`mirror client` as a person meets it."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from mirror.cli.clients import app

CLIENTS = [
    ("docker",), ("docker", "--store", "containerd"), ("containerd",),
    ("containerd", "--referrers"), ("docker", "--store", "containerd", "--referrers"),
    ("k3s",), ("podman",),
    ("buildkit",), ("docker", "--proxy", "daemon"), ("docker", "--proxy", "systemd"),
]  # fmt: skip


@pytest.fixture(autouse=True)
def no_configuration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "mirror.toml"
    file.write_text('[upstreams."r.lan"]\nurl = "https://r.lan"\n')
    monkeypatch.setenv("MIRROR_CONFIG", str(file))


def told(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["client", *arguments])


@pytest.mark.parametrize("client", CLIENTS)
def test_what_is_printed_and_what_is_written_are_the_same_bytes(
    client: tuple[str, ...], tmp_path: Path
) -> None:
    printed = told(*client, "--url", "http://m.lan:5000")
    written = told(*client, "--url", "http://m.lan:5000", "--write", str(tmp_path / "out"))
    assert (printed.exit_code, written.exit_code) == (0, 0)
    paths = [Path(line) for line in written.stdout.splitlines()]
    assert "\n".join(path.read_text() for path in paths) == printed.stdout
    files = {path for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert files == set(paths)


@pytest.mark.parametrize("client", CLIENTS)
def test_advice_stays_apart_from_what_is_pasted(client: tuple[str, ...]) -> None:
    shown = told(*client, "--url", "http://m.lan:5000")
    assert all(line.startswith("# ") for line in shown.stderr.splitlines())
    assert shown.stderr


@pytest.mark.parametrize("client", [client for client in CLIENTS if client != ("docker",)])
def test_configured_upstreams_are_in_it(client: tuple[str, ...]) -> None:
    shown = told(*client, "--url", "http://m.lan:5000")
    assert "r.lan" in (shown.stderr if "--proxy" in client else shown.stdout)


def test_the_proxy_is_where_the_mirror_listens_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = told("docker", "--proxy", "daemon")
    assert refused.exit_code == 2
    assert "[proxy] listen" in refused.stderr
    monkeypatch.setenv("MIRROR_PROXY__LISTEN", "10.1.2.3:3128")
    proxies = json.loads(told("docker", "--proxy", "daemon").stdout)["proxies"]
    assert proxies == {
        "https-proxy": "http://10.1.2.3:3128",
        "no-proxy": "localhost,127.0.0.1,::1,10.1.2.3",
    }
    unit = told("docker", "--proxy", "systemd").stdout
    assert 'Environment="HTTPS_PROXY=http://10.1.2.3:3128"' in unit.splitlines()


def test_the_ca_of_the_proxy_is_copied_to_where_the_system_looks(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("a certificate")
    arguments = ["--url", "http://m.lan:3128", "--ca-file", str(tmp_path / "ca.pem")]
    written = told("docker", "--proxy", "daemon", *arguments, "--write", str(tmp_path / "out"))
    assert written.exit_code == 0
    copy = tmp_path / "out/usr/local/share/ca-certificates/mirror.crt"
    assert copy.read_text() == "a certificate"
    assert "update-ca-certificates" in written.stderr


def test_a_mirror_with_a_certificate_is_reached_by_https(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key in ("certificate", "key"):
        (tmp_path / key).write_text("pem")
        monkeypatch.setenv(f"MIRROR_SERVER__TLS_{key.upper()}", str(tmp_path / key))
    monkeypatch.setenv("MIRROR_SERVER__LISTEN", "127.0.0.1:5443")
    assert json.loads(told("docker").stdout) == {"registry-mirrors": ["https://127.0.0.1:5443"]}


def test_of_several_addresses_clients_get_the_one_they_can_reach(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MIRROR_SERVER__LISTEN", "unix:/run/m.sock,127.0.0.1:1,10.1.2.3:5000")
    assert json.loads(told("docker").stdout)["registry-mirrors"] == ["http://10.1.2.3:5000"]


def test_a_mirror_on_a_unix_socket_has_to_be_told_its_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MIRROR_SERVER__LISTEN", "unix:/run/m.sock")
    failed = told("docker")
    assert failed.exit_code == 2
    assert failed.stderr.startswith("mirror: the mirror listens on a unix socket only: give its")
    assert told("docker", "--url", "http://m.lan:5000").exit_code == 0


@pytest.mark.parametrize(
    ("client", "place"), [("docker", "etc/docker"), ("podman", "etc/containers")]
)
def test_a_ca_is_copied_to_where_the_client_looks_for_it(
    client: str, place: str, tmp_path: Path
) -> None:
    (tmp_path / "ca.pem").write_text("a certificate")
    arguments = ("--url", "https://m.lan", "--ca-file", str(tmp_path / "ca.pem"))
    assert told(client, *arguments, "--write", str(tmp_path)).exit_code == 0
    assert (tmp_path / place / "certs.d/m.lan/ca.crt").read_text() == "a certificate"


def test_a_ca_that_is_not_there_is_one_line_and_1(tmp_path: Path) -> None:
    arguments = ("--url", "https://m.lan", "--ca-file", "/nowhere.pem", "--write", str(tmp_path))
    failed = told("podman", *arguments)
    assert failed.exit_code == 1
    assert "mirror: /nowhere.pem: cannot be read or written: " in failed.stderr
    assert list(tmp_path.rglob("mirror.conf")) == []


def test_a_ca_for_plain_http_is_a_mistake() -> None:
    failed = told("docker", "--url", "http://m.lan", "--ca-file", "/ca.pem")
    assert (failed.exit_code, failed.stdout) == (2, "")
    assert "a CA is for an https mirror" in failed.stderr


def test_a_file_that_says_something_else_is_not_overwritten(tmp_path: Path) -> None:
    file = tmp_path / "etc/rancher/k3s/registries.yaml"
    file.parent.mkdir(parents=True)
    file.write_text("mirrors: {}\n")
    failed = told("k3s", "--url", "http://m.lan", "--write", str(tmp_path))
    assert failed.exit_code == 1
    assert f"mirror: {file} exists already: merge the output" in failed.stderr
    assert file.read_text() == "mirrors: {}\n"


@pytest.fixture
def daemon_json(tmp_path: Path) -> Path:
    file = tmp_path / "etc/docker/daemon.json"
    file.parent.mkdir(parents=True)
    file.write_text(
        '{"data-root": "/srv/docker", "registry-mirrors": ["http://other.lan"],'
        ' "proxies": {"http-proxy": "http://p.lan", "no-proxy": "git.lan,localhost"}}'
    )
    file.chmod(0o600)
    return file


def merging(directory: Path, *arguments: str, answer: str = "") -> Result:
    command = ["client", "docker", "--url", "http://m.lan:5000", "--write", str(directory)]
    return CliRunner().invoke(app, [*command, *arguments], input=answer)


def test_an_existing_daemon_json_is_merged(tmp_path: Path, daemon_json: Path) -> None:
    written = merging(tmp_path, "--yes")
    assert (written.exit_code, written.stdout) == (0, f"{daemon_json}\n")
    settings = json.loads(daemon_json.read_text())
    assert settings["data-root"] == "/srv/docker"
    assert settings["registry-mirrors"] == ["http://m.lan:5000", "http://other.lan"]
    assert settings["insecure-registries"] == ["m.lan:5000"]
    assert '+    "http://m.lan:5000",' in written.stderr.splitlines()
    assert daemon_json.stat().st_mode & 0o777 == 0o600
    assert list(daemon_json.parent.iterdir()) == [daemon_json]
    daemon_json.write_text(text := json.dumps(settings))
    again = merging(tmp_path)
    assert (again.exit_code, daemon_json.read_text()) == (0, text), "nothing to ask for"


@pytest.mark.parametrize("answer", ["", "n\n"])
def test_a_daemon_json_changes_only_with_consent(
    tmp_path: Path, daemon_json: Path, answer: str
) -> None:
    before = daemon_json.read_bytes()
    refused = merging(tmp_path, answer=answer)
    assert refused.exit_code == 1
    assert refused.stderr.endswith(
        f"mirror: {daemon_json} is unchanged; --yes changes it without asking\n"
    )
    assert daemon_json.read_bytes() == before
    assert merging(tmp_path, answer="y\n").exit_code == 0
    assert daemon_json.read_bytes() != before


def test_the_proxy_is_merged_with_the_hosts_that_need_none(
    tmp_path: Path, daemon_json: Path
) -> None:
    assert merging(tmp_path, "--proxy", "daemon", "-y").exit_code == 0
    assert json.loads(daemon_json.read_text())["proxies"] == {
        "http-proxy": "http://p.lan",
        "no-proxy": "git.lan,localhost,127.0.0.1,::1,m.lan",
        "https-proxy": "http://m.lan:5000",
    }


def test_a_daemon_json_that_is_a_link_stays_one(tmp_path: Path, daemon_json: Path) -> None:
    real = daemon_json.rename(tmp_path / "real.json")
    daemon_json.symlink_to(real)
    assert merging(tmp_path, "--yes").exit_code == 0
    assert daemon_json.is_symlink()
    assert "m.lan" in real.read_text()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'{"debug": true', "Expecting"),
        (b"[]", "no JSON object"),
        (b'{"registry-mirrors": "http://m.lan"}', "registry-mirrors is not a JSON array"),
        (b"\xff", "codec"),
    ],
)
def test_a_daemon_json_with_a_mistake_is_one_line(
    tmp_path: Path, daemon_json: Path, content: bytes, reason: str
) -> None:
    daemon_json.write_bytes(content)
    failed = merging(tmp_path, "--yes")
    (line,) = (line for line in failed.stderr.splitlines() if not line.startswith("# "))
    assert line.startswith(f"mirror: {daemon_json}: cannot be changed: ")
    assert reason in line
    assert daemon_json.read_bytes() == content


def test_the_next_option_is_no_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    failed = told("docker", "--url", "http://m.lan", "--write", "--yes")
    assert failed.exit_code == 2
    assert "needs a directory" in failed.stderr
    assert not (tmp_path / "--yes").exists()


def test_writing_the_same_again_is_no_mistake(tmp_path: Path) -> None:
    for _ in range(2):
        written = told("containerd", "--url", "http://m.lan", "--write", str(tmp_path))
        assert written.exit_code == 0
