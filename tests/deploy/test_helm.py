"""The Helm chart: rendered, accepted by the types of the API, and what the mirror understands."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from mirror import __version__
from mirror.config import Config, load
from tests.deploy.files import CONFIG, dashboard, yaml_of
from tests.deploy.test_deploy_files import parsed, stop_seconds
from tests.peers.go_programs import go_program
from tests.peers.requirements import need

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1800), pytest.mark.long]

CHART = CONFIG / "helm"
_CHECKER = Path(__file__).parents[2] / "tools" / "package" / "manifests"
_USER = 10001  # the Dockerfile's
_ALL = {
    "image": {"pullSecrets": ["login"], "tag": "1"},
    "env": [{"name": "MIRROR_SERVER__WORKERS", "value": "2"}],
    "extraVolumes": [{"name": "hub", "secret": {"secretName": "hub"}}],
    "extraVolumeMounts": [{"name": "hub", "mountPath": "/run/secrets/mirror"}],
    "persistence": {"storageClass": "fast"},
    "tls": {"secretName": "mirror-tls"},
    "service": {"type": "LoadBalancer", "annotations": {"example.com/pool": "lan"}},
    "ingress": {"enabled": True, "className": "nginx", "tlsSecretName": "site"},
    "serviceMonitor": {"enabled": True},
    "prometheusRule": {"enabled": True},
    "dashboard": {"enabled": True},
    "nodeSelector": {"disk": "large"},
    "tolerations": [{"key": "cache", "operator": "Exists"}],
    "affinity": {"nodeAffinity": {}},
    "podAnnotations": {"example.com/team": "ci"},
}
_CLUSTER = {
    "enabled": True,
    "secretName": "mirror-cluster",
    "objects": "s3://images/cache",
    "endpoint": "http://seaweedfs.example.com:8333",
    "region": "eu-central-1",
    "credentialsKey": "credentials",
    "state": "redis://redis.example.com",
}
_ALL_OF_CLUSTER = {**_ALL, "tls": {}, "cluster": _CLUSTER}
Objects = dict[str, dict[str, Any]]


def rendered(values: dict[str, Any], release: str = "mirror") -> str:
    command = [str(go_program("helm")), "template", release, str(CHART)]
    command += ["--namespace", "ci", "--values", "-"]
    done = subprocess.run(
        command, input=json.dumps(values), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def objects(text: str) -> Objects:
    """By kind; the dashboard's ConfigMap and the Service of replicas apart."""
    found: Objects = {}
    apart = {"dashboard": "Dashboard", "peers": "Peers"}
    for document in yaml.safe_load_all(text):
        _, _, last = document["metadata"]["name"].rpartition("-")
        found[apart.get(last, document["kind"])] = document
    return found


@pytest.fixture(scope="module")
def plain() -> Objects:
    return objects(rendered({}))


@pytest.fixture(scope="module")
def full() -> Objects:
    return objects(rendered(_ALL))


@pytest.fixture
def pod(plain: Objects) -> dict[str, Any]:
    found: dict[str, Any] = plain["Deployment"]["spec"]["template"]["spec"]
    return found


@pytest.fixture
def configured(plain: Objects, tmp_path: Path) -> Config:
    file = tmp_path / "mirror.toml"
    file.write_text(plain["ConfigMap"]["data"]["mirror.toml"])
    return load(file, {})


def test_the_types_of_the_api_accept_each_object_and_no_unknown_field(tmp_path):
    need("go")
    checker = tmp_path / "checker"
    build = ["go", "build", "-C", str(_CHECKER), "-trimpath", "-o", str(checker), "."]
    subprocess.run(build, check=True, timeout=1500)

    def accepted(text: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run([checker], input=text, capture_output=True, text=True, check=False)

    for values in (
        {},
        _ALL,
        {"cluster": _CLUSTER},
        {"cluster": _CLUSTER, "persistence": {"enabled": False}},
        _ALL_OF_CLUSTER,
        {"persistence": {"enabled": False}, "networkPolicy": {"enabled": False}},
    ):
        text = rendered(values)
        done = accepted(text)
        assert done.returncode == 0, done.stderr
        assert len(done.stdout.split()) == len([*yaml.safe_load_all(text)])
    wrong = text.replace("readOnlyRootFilesystem", "readOnlyRootFileSystem")
    assert 'unknown field "spec.template.spec.containers[0]' in accepted(wrong).stderr


@pytest.mark.parametrize("cluster", [{}, _CLUSTER])
def test_the_linter_of_helm_finds_nothing(cluster):
    command = [str(go_program("helm")), "lint", "--strict", "--quiet", str(CHART)]
    command += ["--set-json", f"cluster={json.dumps(cluster)}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_a_misspelt_value_is_a_mistake():
    command = [str(go_program("helm")), "template", str(CHART), "--set", "persistance.size=1Gi"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "'persistance' not allowed" in done.stderr


def test_the_version_of_the_chart_is_the_mirrors():
    chart = yaml_of(CHART / "Chart.yaml")
    assert chart["version"] == chart["appVersion"] == __version__


def test_what_is_optional_is_off_until_it_is_wanted(plain, full):
    always = {"ConfigMap", "PersistentVolumeClaim", "Service", "Deployment", "NetworkPolicy"}
    assert set(plain) == always
    assert set(full) == always | {"Ingress", "ServiceMonitor", "PrometheusRule", "Dashboard"}
    for cluster in (plain, full):
        assert {each["metadata"]["namespace"] for each in cluster.values()} == {"ci"}


def test_rules_and_dashboard_are_those_of_the_repository(full):
    groups = [
        group
        for name in ("rules.yml", "alerts.yml")
        for group in yaml_of(CONFIG / "prometheus" / name)["groups"]
    ]
    assert full["PrometheusRule"]["spec"]["groups"] == groups
    assert json.loads(full["Dashboard"]["data"]["mirror.json"]) == dashboard()


def test_the_configuration_is_what_the_mirror_understands(plain, pod, configured):
    (container,) = pod["containers"]
    config = parsed(container["args"])["config"]
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    assert config.name in plain["ConfigMap"]["data"]
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    name = volumes[mounts[str(config.parent)]]["configMap"]["name"]
    assert name == plain["ConfigMap"]["metadata"]["name"]
    claim = volumes[mounts[str(configured.cache.directory)]]["persistentVolumeClaim"]["claimName"]
    assert claim == plain["PersistentVolumeClaim"]["metadata"]["name"]


def test_tls_reaches_the_mirror_its_probes_and_prometheus(full, configured):
    spec = full["Deployment"]["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    env = {each["name"]: each["value"] for each in container["env"]}
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    for key, file in (("CERTIFICATE", "tls.crt"), ("KEY", "tls.key")):
        path = Path(env[f"MIRROR_SERVER__TLS_{key}"])
        assert path.name == file  # of a Secret of type kubernetes.io/tls
        assert volumes[mounts[str(path.parent)]]["secret"]["secretName"] == "mirror-tls"
    for probe in ("readinessProbe", "livenessProbe"):
        assert container[probe]["httpGet"]["scheme"] == "HTTPS"
    assert full["ServiceMonitor"]["spec"]["endpoints"][0]["scheme"] == "https"


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


def test_the_pod_is_watched_bounded_and_may_finish(plain, pod, configured):
    (container,) = pod["containers"]
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert container["livenessProbe"]["httpGet"]["path"] == "/healthz"
    assert container["resources"]["requests"]["memory"]
    assert container["resources"]["limits"]["memory"]
    assert pod["terminationGracePeriodSeconds"] > stop_seconds(configured)
    deployment = plain["Deployment"]["spec"]
    assert (deployment["replicas"], deployment["strategy"]) == (1, {"type": "Recreate"})


@pytest.mark.parametrize("release", ["mirror", "other"])
def test_labels_and_ports_lead_from_ingress_service_and_monitor_to_the_pod(release, configured):
    cluster = objects(rendered(_ALL, release))
    template = cluster["Deployment"]["spec"]["template"]
    labels = template["metadata"]["labels"]
    (port,) = template["spec"]["containers"][0]["ports"]
    service, monitor = cluster["Service"], cluster["ServiceMonitor"]["spec"]
    (exposed,) = service["spec"]["ports"]
    assert cluster["Deployment"]["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert service["spec"]["selector"].items() <= labels.items()
    assert 30000 <= exposed["nodePort"] < 32768
    assert exposed["targetPort"] == port["name"]
    assert [place.port for place in configured.server.addresses()] == [port["containerPort"]]
    assert monitor["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    (endpoint,) = monitor["endpoints"]
    assert (endpoint["port"], endpoint["path"]) == (exposed["name"], "/metrics")
    # The job's name, which the alerts know.
    assert service["metadata"]["labels"][monitor["jobLabel"]] == "mirror"
    (rule,) = cluster["Ingress"]["spec"]["rules"]
    backend = rule["http"]["paths"][0]["backend"]["service"]
    assert backend == {"name": service["metadata"]["name"], "port": {"name": exposed["name"]}}


def test_the_network_policy_lets_pulls_in_and_https_and_dns_out(plain):
    policy = plain["NetworkPolicy"]["spec"]
    labels = plain["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert policy["podSelector"]["matchLabels"].items() <= labels.items()
    assert set(policy["policyTypes"]) == {"Ingress", "Egress"}
    (ingress,) = policy["ingress"]
    assert [port["port"] for port in ingress["ports"]] == [5000]
    assert any("namespaceSelector" in source for source in ingress["from"])
    assert any("ipBlock" in source for source in ingress["from"])
    out = {(p["protocol"], p["port"]) for rule in policy["egress"] for p in rule["ports"]}
    assert out == {("UDP", 53), ("TCP", 53), ("TCP", 443)}


# Several mirrors.


@pytest.fixture(scope="module")
def cluster() -> Objects:
    return objects(rendered({"cluster": _CLUSTER}))


def test_the_environment_of_a_replica_is_what_the_mirror_understands(
    cluster, monkeypatch, tmp_path
):
    spec = cluster["StatefulSet"]["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    first, *rest = container["env"]
    assert first == {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in spec["volumes"]}
    (tmp_path / "secret").write_text("0" * 64)
    (tmp_path / "credentials").write_text("[default]")
    for each in rest:
        value = each["value"].replace("$(POD_IP)", "10.1.2.3")
        if each["name"].endswith("_FILE"):  # the keys of the Secret are files
            path = Path(value)
            assert volumes[mounts[str(path.parent)]]["secret"]["secretName"] == "mirror-cluster"
            value = str(tmp_path / path.name)
        monkeypatch.setenv(each["name"], value)
    file = tmp_path / "mirror.toml"
    file.write_text(cluster["ConfigMap"]["data"]["mirror.toml"])
    found = load(file, {}).cluster
    for key in ("objects", "endpoint", "region", "state"):
        assert getattr(found, key) == _CLUSTER[key]
    assert found.secret_file == str(tmp_path / "secret")
    assert found.credentials_file == str(tmp_path / "credentials")
    assert found.advertise == "http://10.1.2.3:5000"
    peers = cluster["Peers"]
    host = f"{peers['metadata']['name']}.{peers['metadata']['namespace']}.svc"
    assert found.peers == (f"dns:{host}:{peers['spec']['ports'][0]['port']}",)


def test_the_name_of_the_replicas_has_their_addresses_and_is_not_scraped(cluster):
    replicas, peers = cluster["StatefulSet"]["spec"], cluster["Peers"]["spec"]
    labels = replicas["template"]["metadata"]["labels"]
    assert peers["clusterIP"] == "None"
    assert peers["selector"].items() <= labels.items()
    assert replicas["serviceName"] == cluster["Peers"]["metadata"]["name"]
    (port,) = peers["ports"]
    (listening,) = replicas["template"]["spec"]["containers"][0]["ports"]
    # A pod's own address has no other port.
    assert port["port"] == listening["containerPort"]
    assert port["name"] != cluster["Service"]["spec"]["ports"][0]["name"]


def test_replicas_have_their_own_volumes_and_nodes_and_go_one_at_a_time(cluster):
    replicas = cluster["StatefulSet"]["spec"]
    template = replicas["template"]
    labels = template["metadata"]["labels"]
    assert replicas["replicas"] == 3
    assert {"Deployment", "PersistentVolumeClaim"}.isdisjoint(cluster)
    (claim,) = replicas["volumeClaimTemplates"]
    mounts = {m["name"] for m in template["spec"]["containers"][0]["volumeMounts"]}
    volumes = {volume["name"] for volume in template["spec"]["volumes"]}
    assert mounts == volumes | {claim["metadata"]["name"]}
    assert claim["metadata"]["name"] not in volumes
    (spread,) = template["spec"]["topologySpreadConstraints"]
    assert spread["topologyKey"] == "kubernetes.io/hostname"
    budget = cluster["PodDisruptionBudget"]["spec"]
    assert budget["maxUnavailable"] == 1
    for selector in (budget["selector"], spread["labelSelector"], replicas["selector"]):
        assert selector["matchLabels"].items() <= labels.items()


def test_the_network_policy_lets_replicas_reach_each_other_the_store_and_redis(cluster):
    policy = cluster["NetworkPolicy"]["spec"]
    own = [{"podSelector": policy["podSelector"]}]
    replicas = [{"protocol": "TCP", "port": 5000}]
    assert {"ports": replicas, "from": own} in policy["ingress"]
    assert {"ports": replicas, "to": own} in policy["egress"]
    anywhere = [rule["ports"] for rule in policy["egress"] if "to" not in rule]
    assert {port["port"] for ports in anywhere for port in ports} == {53, 443, 8333, 6379}


@pytest.mark.parametrize(
    ("values", "wrong"),
    [
        ({"cluster": {"enabled": True}}, "cluster.secretName"),
        ({"cluster": _CLUSTER, "tls": {"secretName": "tls"}}, "tls.secretName"),
        ({"cluster": _CLUSTER, "persistence": {"existingClaim": "old"}}, "existingClaim"),
        ({"cluster": {**_CLUSTER, "replicas": 0}}, "/cluster/replicas"),
        ({"cluster": {**_CLUSTER, "bucket": "b"}}, "'bucket' not allowed"),
    ],
)
def test_what_a_cluster_cannot_be_is_refused(values, wrong):
    command = [str(go_program("helm")), "template", str(CHART), "--values", "-"]
    done = subprocess.run(
        command, input=json.dumps(values), capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert wrong in done.stderr
