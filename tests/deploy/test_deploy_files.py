"""Compose and systemd: they say what they promise, and the mirror understands it."""

import asyncio
import os
import re
import shlex
import shutil
import subprocess
import sys
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import trustme
import typer
import yaml

from mirror.cli.root import app
from mirror.config import Config, load
from mirror.config.addresses import TcpAddress
from mirror.config.fields import state_directory
from tests.deploy.files import CONFIG, yaml_of
from tests.peers.go_programs import go_program
from tests.peers.requirements import need
from tests.running import running

UNIT = CONFIG / "systemd" / "mirror.service"
SOCKET = UNIT.with_name("mirror.socket")
_USER = 10001  # the Dockerfile's


def parsed(arguments: list[str]) -> dict[str, Any]:
    """What the command line makes of arguments; it exits where it does not know one."""
    group: Any = typer.main.get_command(app)
    name, *rest = arguments
    command = group.commands[name]
    return command.make_context(name, list(rest)).params


def stop_seconds(config: Config) -> float:
    """The longest time from SIGTERM to the end."""
    return config.server.lame_duck.seconds + config.server.drain.seconds


def test_a_wrong_command_line_is_found():
    with pytest.raises(Exception, match="--cache-directory"):
        parsed(["serve", "--cache-directory", "/var/cache/mirror"])


# Compose.


@pytest.fixture
def services() -> dict[str, Any]:
    found: dict[str, Any] = yaml_of(CONFIG / "compose.yaml")["services"]
    return found


def seconds(text: str) -> float:
    return float(text.removesuffix("s"))


def test_compose_brings_up_all_three_for_good(services):
    assert set(services) == {"mirror", "prometheus", "grafana"}
    volumes = yaml_of(CONFIG / "compose.yaml")["volumes"]
    for name, service in services.items():
        assert service["restart"] == "unless-stopped", name
        assert service["healthcheck"]["test"][0] == "CMD", name
        assert service["cap_drop"] == ["ALL"], name
        sources = [volume.split(":")[0] for volume in service["volumes"]]
        assert sum(source in volumes for source in sources) == 1 + (name == "mirror"), name
        for source in sources:
            assert source in volumes or (CONFIG / source).exists(), source


def test_the_mirror_of_compose_is_built_here_and_writes_only_its_cache(services):
    mirror = services["mirror"]
    assert (CONFIG / mirror["build"]["context"] / "Dockerfile").exists()
    assert mirror["read_only"] is True
    assert "cache:/var/cache/mirror" in mirror["volumes"]
    assert "state:/var/lib/mirror" in mirror["volumes"]
    assert ".:/etc/mirror:ro" in mirror["volumes"], "mirror.toml is beside the file"
    config = load(CONFIG / "mirror.toml", {})
    assert seconds(mirror["stop_grace_period"]) > stop_seconds(config)
    assert mirror["ulimits"]["nofile"] >= 3 * config.limits.connections
    assert str(config.cache.directory) == "/var/cache/mirror"


async def healthy(*arguments: str, **environment: str) -> bool:
    """Whether the health check of the container ends with 0."""
    command = (sys.executable, str(CONFIG / "healthcheck.py"), *arguments)
    clean = {"PATH": os.environ["PATH"], "http_proxy": "http://127.0.0.1:9", **environment}
    done = await asyncio.create_subprocess_exec(*command, env=clean, stderr=subprocess.DEVNULL)
    return await done.wait() == 0


async def test_the_health_check_finds_port_and_tls_where_the_mirror_does(tmp_path, services):
    _, program, *arguments = services["mirror"]["healthcheck"]["test"]
    assert (program, arguments) == ("python", ["/opt/mirror/healthcheck.py", "/readyz"])
    pem = tmp_path / "pem"
    trustme.CA().issue_cert("mirror.example.com").private_key_and_cert_chain_pem.write_to_path(pem)
    server = {"tls_certificate": str(pem), "tls_key": str(pem)}
    async with running(tmp_path / "cache", {}, server=server) as mirror:
        listen = mirror.url.removeprefix("http://")
        file = tmp_path / "mirror.toml"
        file.write_text(f'[server]\nlisten = ["unix:/x", "{listen}"]\ntls_certificate = "{pem}"\n')
        assert await healthy(MIRROR_CONFIG=str(file))
        assert await healthy("/readyz", MIRROR_CONFIG=str(file))
        assert not await healthy("/nothing", MIRROR_CONFIG=str(file))
        assert not await healthy(MIRROR_CONFIG=str(file), MIRROR_SERVER__LISTEN="127.0.0.1:9")
    async with running(tmp_path / "cache", {}) as mirror:
        listen = mirror.url.removeprefix("http://")
        assert await healthy(MIRROR_SERVER__LISTEN=f"unix:/x, {listen}")
    assert not await healthy(MIRROR_SERVER__LISTEN=listen)


def test_prometheus_of_compose_finds_the_mirror_and_its_rules(services):
    scraped = yaml_of(CONFIG / "prometheus" / "prometheus.yml")
    (job,) = scraped["scrape_configs"]
    assert job["static_configs"] == [{"targets": ["mirror:5000"]}]
    assert "5000:5000" in services["mirror"]["ports"]
    mounts = services["prometheus"]["volumes"]
    assert "./prometheus:/etc/prometheus:ro" in mounts
    assert "--config.file=/etc/prometheus/prometheus.yml" in services["prometheus"]["command"]


@pytest.mark.e2e
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("name", ["compose.yaml", "compose-cluster.yaml"])
def test_docker_compose_of_both_versions_accepts_the_file(name, version):
    file = CONFIG / name
    if version == 1:
        need("docker-compose")
        command = ["docker-compose", "-f", str(file), "config"]
    else:  # a plugin of docker; its parser comes as a command, too
        command = [str(go_program("compose")), str(file)]
    run = subprocess.run(command, capture_output=True, text=True, check=False, cwd=CONFIG)
    assert run.returncode == 0, run.stderr
    found = yaml.safe_load(run.stdout)
    assert set(found["services"]) == set(yaml_of(file)["services"])
    # Both take the name of the project, and so of the volumes, from here; neither prints it.
    assert "\nCOMPOSE_PROJECT_NAME=mirror\n" in (CONFIG / ".env").read_text()


# Compose with several mirrors.

MIRRORS = {"mirror1", "mirror2", "mirror3"}


@pytest.fixture
def cluster() -> dict[str, Any]:
    found: dict[str, Any] = yaml_of(CONFIG / "compose-cluster.yaml")
    return found


def address(service: dict[str, Any]) -> str:
    found: str = service["networks"]["default"]["ipv4_address"]
    return found


def test_each_mirror_of_the_cluster_understands_its_environment(cluster, monkeypatch, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("0" * 64)
    services, found = cluster["services"], {}
    nginx = address(services["nginx"])
    for name in MIRRORS:
        environment = services[name]["environment"]
        assert environment["MIRROR_CLUSTER__SECRET_FILE"] == "/run/secrets/cluster"
        assert services[name]["build"]["args"] == {"EXTRAS": "[cluster]"}
        assert services[name]["secrets"] == list(cluster["secrets"]) == ["cluster"]
        with monkeypatch.context() as patch:
            for key, value in environment.items():
                patch.setenv(key, value)
            patch.setenv("MIRROR_CLUSTER__SECRET_FILE", str(secret))
            config = load(CONFIG / "mirror.toml", {})
        found[config.cluster.advertise] = config.cluster
        assert [str(each) for each in config.server.trusted_proxies] == [nginx]
        assert seconds(services[name]["stop_grace_period"]) > stop_seconds(config)
    assert set(found) == {f"http://{name}:5000" for name in MIRRORS}
    for each in found.values():
        assert set(each.peers) == set(found)
        assert urlsplit(each.state).hostname in services
        assert urlsplit(each.endpoint).hostname in services
    store = services["seaweedfs"]["environment"]
    assert store.items() <= services["mirror1"]["environment"].items()


def test_the_mirrors_of_the_cluster_share_no_volume_and_no_address(cluster):
    services = cluster["services"]
    named = [
        volume.split(":")[0]
        for service in services.values()
        for volume in service.get("volumes", ())
        if not volume.startswith(".")
    ]
    assert sorted(named) == sorted(cluster["volumes"])
    (pool,) = cluster["networks"]["default"]["ipam"]["config"]
    fixed = [ip_address(address(services[name])) for name in (*MIRRORS, "nginx")]
    assert len(set(fixed)) == len(fixed)
    for each in fixed:
        assert each in ip_network(pool["subnet"])
        assert each not in ip_network(pool["ip_range"]), "Docker gives it to another service"


def test_only_nginx_of_the_cluster_can_be_reached(cluster):
    services = cluster["services"]
    assert [name for name, service in services.items() if "ports" in service] == ["nginx"]
    for name, service in services.items():
        assert service["restart"] == "unless-stopped", name
        assert service["healthcheck"]["test"][0] == "CMD", name
        assert "no-new-privileges:true" in service["security_opt"], name
    (mount,) = services["nginx"]["volumes"]
    conf = (CONFIG / mount.split(":")[0]).read_text()
    assert set(re.findall(r"server (\w+):5000", conf)) == MIRRORS


def test_the_secret_of_the_cluster_is_in_no_commit(cluster):
    file = cluster["secrets"]["cluster"]["file"]
    assert f"/config/{file}" in (CONFIG.parent / ".gitignore").read_text().splitlines()


# systemd.


@pytest.fixture
def unit() -> dict[str, list[str]]:
    """Every key of the unit with its values in order."""
    found: dict[str, list[str]] = {}
    for line in UNIT.read_text().splitlines():
        if "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


def test_the_unit_starts_a_command_line_that_the_mirror_knows(unit):
    program, *arguments = shlex.split(unit["ExecStart"][0])
    assert Path(program).name == "mirror"
    parsed(arguments)


def test_the_unit_gives_the_mirror_its_cache_its_files_and_its_time(unit, monkeypatch):
    for setting in unit["Environment"][0].split():
        monkeypatch.setenv(*setting.split("="))
    monkeypatch.setattr("os.geteuid", lambda: _USER)
    config = load(None, {})
    assert unit["CacheDirectory"] == ["mirror"]
    assert config.cache.directory == Path("/var/cache/mirror")
    assert unit["StateDirectory"] == ["mirror"]
    assert state_directory(config.cache.directory) == Path("/var/lib/mirror")
    assert int(unit["LimitNOFILE"][0]) >= 3 * config.limits.connections
    assert int(unit["TimeoutStopSec"][0]) > stop_seconds(config)
    assert unit["Restart"] == ["always"]
    assert unit["Type"] == ["notify"]
    assert int(unit["WatchdogSec"][0]) >= 30, "a busy machine is not a dead one"
    assert unit["ExecReload"] == ["/bin/sh -c 'kill -HUP $MAINPID'"], (
        "a minimal system has no /bin/kill"
    )


def test_the_socket_unit_opens_the_port_that_clients_know():
    lines = [line for line in SOCKET.read_text().splitlines() if line.startswith("Listen")]
    (address,) = load().server.addresses()
    assert isinstance(address, TcpAddress)
    assert lines == [f"ListenStream={address.port}"]


def test_the_unit_is_hardened(unit):
    for key in ("DynamicUser", "NoNewPrivileges", "MemoryDenyWriteExecute", "PrivateTmp"):
        assert unit[key] == ["yes"], key
    assert unit["ProtectSystem"] == ["strict"]
    assert unit["CapabilityBoundingSet"] == [""]
    assert unit["SystemCallFilter"][0] == "@system-service"
    assert "AF_INET6" in unit["RestrictAddressFamilies"][0]


@pytest.mark.e2e
def test_systemd_accepts_the_unit_and_finds_it_hardly_exposed(tmp_path):
    need("systemd-analyze")
    copy = tmp_path / "mirror.service"
    # It looks for the program, which is not installed here.
    copy.write_text(UNIT.read_text().replace("/opt/mirror/bin/mirror", sys.executable))
    beside = Path(shutil.copy(SOCKET, tmp_path))
    for arguments in (
        ["verify", "--man=no", str(beside)],
        ["security", "--offline=true", "--no-pager", "--threshold=20"],  # 2.0 of 10
    ):
        command = ["systemd-analyze", *arguments, str(copy)]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stdout + run.stderr
        assert "mirror.s" not in run.stderr
