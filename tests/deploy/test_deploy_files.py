"""Compose, systemd and Kubernetes: they say what they promise, and the mirror understands it."""

import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from mirror.cli.root import app
from mirror.config import Config, load
from mirror.config.addresses import TcpAddress
from tests.deploy.files import CONFIG, yaml_of
from tests.peers.requirements import need

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
        assert sum(source in volumes for source in sources) == 1, name
        for source in sources:
            assert source in volumes or (CONFIG / source).exists(), source


def test_the_mirror_of_compose_is_built_here_and_writes_only_its_cache(services):
    mirror = services["mirror"]
    assert (CONFIG / mirror["build"]["context"] / "Dockerfile").exists()
    assert mirror["read_only"] is True
    assert "cache:/var/cache/mirror" in mirror["volumes"]
    assert ".:/etc/mirror:ro" in mirror["volumes"], "mirror.toml is beside the file"
    config = load(CONFIG / "mirror.toml", {})
    assert seconds(mirror["stop_grace_period"]) > stop_seconds(config)
    assert mirror["ulimits"]["nofile"] >= 3 * config.limits.connections
    assert str(config.cache.directory) == "/var/cache/mirror"


def test_the_health_checks_program_is_one(services):
    *_, program = services["mirror"]["healthcheck"]["test"]
    compile(program, "healthcheck", "exec")
    assert "/readyz" in program


def test_prometheus_of_compose_finds_the_mirror_and_its_rules(services):
    scraped = yaml_of(CONFIG / "prometheus" / "prometheus.yml")
    (job,) = scraped["scrape_configs"]
    assert job["static_configs"] == [{"targets": ["mirror:5000"]}]
    assert "5000:5000" in services["mirror"]["ports"]
    mounts = services["prometheus"]["volumes"]
    assert "./prometheus:/etc/prometheus:ro" in mounts
    assert "--config.file=/etc/prometheus/prometheus.yml" in services["prometheus"]["command"]


@pytest.mark.e2e
def test_docker_compose_accepts_the_file():
    text = (CONFIG / "compose.yaml").read_text()
    command = ["docker", "compose"]
    if not shutil.which("docker") or subprocess.run([*command, "version"], check=False).returncode:
        need("docker-compose")
        command = ["docker-compose"]
        text = text.replace("name: mirror\n", "")  # Debian's is older than that key
    run = subprocess.run(
        [*command, "-f", "-", "config", "--quiet"],
        input=text,
        capture_output=True,
        text=True,
        check=False,
        cwd=CONFIG,
    )
    assert run.returncode == 0, run.stderr


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
    assert int(unit["LimitNOFILE"][0]) >= 3 * config.limits.connections
    assert int(unit["TimeoutStopSec"][0]) > stop_seconds(config)
    assert unit["Restart"] == ["always"]
    assert unit["Type"] == ["notify"]
    assert int(unit["WatchdogSec"][0]) >= 30, "a busy machine is not a dead one"
    assert unit["ExecReload"] == ["/bin/kill -HUP $MAINPID"]


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


# Kubernetes.


@pytest.fixture
def cluster() -> dict[str, Any]:
    """The objects by kind."""
    text = (CONFIG / "kubernetes" / "mirror.yaml").read_text()
    return {document["kind"]: document for document in yaml.safe_load_all(text)}


@pytest.fixture
def pod(cluster) -> dict[str, Any]:
    found: dict[str, Any] = cluster["Deployment"]["spec"]["template"]["spec"]
    return found


@pytest.fixture
def configured(cluster, tmp_path) -> Config:
    """The mirror's configuration in the cluster."""
    file = tmp_path / "mirror.toml"
    file.write_text(cluster["ConfigMap"]["data"]["mirror.toml"])
    return load(file, {})


def test_the_cluster_gets_everything_in_one_namespace(cluster):
    assert list(cluster) == [
        "Namespace",
        "ConfigMap",
        "PersistentVolumeClaim",
        "Deployment",
        "Service",
        "ServiceMonitor",
        "NetworkPolicy",
    ]
    spaces = {o["metadata"]["namespace"] for kind, o in cluster.items() if kind != "Namespace"}
    assert spaces == {cluster["Namespace"]["metadata"]["name"]}


def test_the_clusters_configuration_is_what_the_mirror_understands(cluster, pod, configured):
    tomllib.loads(cluster["ConfigMap"]["data"]["mirror.toml"])
    (container,) = pod["containers"]
    config = parsed(container["args"])["config"]
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    assert config.name in cluster["ConfigMap"]["data"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert volumes[mounts[str(config.parent)]]["configMap"]["name"] == "mirror"
    claim = volumes[mounts[str(configured.cache.directory)]]["persistentVolumeClaim"]["claimName"]
    assert claim == cluster["PersistentVolumeClaim"]["metadata"]["name"]


def test_the_pod_has_no_privilege_and_no_writable_root(pod):
    identity = pod["securityContext"]
    assert (identity["runAsNonRoot"], identity["runAsUser"]) == (True, _USER)
    assert identity["fsGroup"] == _USER  # or it could not write to its volume
    assert identity["seccompProfile"] == {"type": "RuntimeDefault"}
    (container,) = pod["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False


def test_the_pod_is_watched_bounded_and_may_finish(cluster, pod, configured):
    (container,) = pod["containers"]
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert container["livenessProbe"]["httpGet"]["path"] == "/healthz"
    assert container["resources"]["requests"]["memory"]
    assert container["resources"]["limits"]["memory"]
    assert pod["terminationGracePeriodSeconds"] > stop_seconds(configured)
    deployment = cluster["Deployment"]["spec"]
    assert (deployment["replicas"], deployment["strategy"]) == (1, {"type": "Recreate"})


def test_labels_and_ports_lead_from_service_and_monitor_to_the_pod(cluster, pod, configured):
    labels = cluster["Deployment"]["spec"]["template"]["metadata"]["labels"]
    (port,) = pod["containers"][0]["ports"]
    service, monitor = cluster["Service"], cluster["ServiceMonitor"]["spec"]
    (exposed,) = service["spec"]["ports"]
    assert cluster["Deployment"]["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert service["spec"]["selector"].items() <= labels.items()
    assert service["spec"]["type"] == "NodePort"
    assert 30000 <= exposed["nodePort"] < 32768
    assert exposed["targetPort"] == port["name"]
    assert [place.port for place in configured.server.addresses()] == [port["containerPort"]]
    assert monitor["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    (endpoint,) = monitor["endpoints"]
    assert (endpoint["port"], endpoint["path"]) == (exposed["name"], "/metrics")
    assert service["metadata"]["name"] == "mirror"  # the job's name, which the alerts know


def test_the_network_policy_lets_pulls_in_and_https_and_dns_out(cluster, pod):
    policy = cluster["NetworkPolicy"]["spec"]
    labels = cluster["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert policy["podSelector"]["matchLabels"].items() <= labels.items()
    assert set(policy["policyTypes"]) == {"Ingress", "Egress"}
    (ingress,) = policy["ingress"]
    assert [port["port"] for port in ingress["ports"]] == [5000]
    assert any("namespaceSelector" in source for source in ingress["from"])
    assert any("ipBlock" in source for source in ingress["from"])
    out = {(p["protocol"], p["port"]) for rule in policy["egress"] for p in rule["ports"]}
    assert out == {("UDP", 53), ("TCP", 53), ("TCP", 443)}
