"""Planted misconfigurations of clients: each is found, and nothing else is wrong."""

from collections.abc import Mapping
from typing import Any

import pytest

from mirror import clients
from mirror.clients import Mirror as Told
from mirror.doctor import Report, Verdict
from tests.doctor.machine import CLASSIC, Machine, registries, wrongs
from tests.running import Mirror

pytestmark = [pytest.mark.slow]


DAEMON = "/etc/docker/daemon.json"
DOCKER_HOSTS = "/etc/docker/certs.d/docker.io/hosts.toml"
HOSTS = "/etc/containerd/certs.d/docker.io/hosts.toml"
CONTAINERD = "/etc/containerd/config.toml"
PODMAN = "/etc/containers/registries.conf"
BUILDKIT = "/etc/buildkit/buildkitd.toml"
K3S = "/etc/rancher/k3s/registries.yaml"
READS_HOSTS = {
    CONTAINERD: 'version = 2\n[plugins."io.containerd.grpc.v1.cri".registry]\n'
    'config_path = "/etc/containerd/certs.d"\n'
}
SEVERAL = (
    "version = 3\n[plugins.'io.containerd.cri.v1.images'.registry]\n"
    "config_path = '/etc/containerd/certs.d:/etc/docker/certs.d'\n"
)

# HOST is host:port of the mirror, LAN the address of one that is not on this machine.
PLANTED: dict[str, tuple[Mapping[str, str], str]] = {
    "daemon.json is no JSON": (
        {DAEMON: '{"registry-mirrors": ["http://HOST"],}'}, "daemon.json: is not valid JSON",
    ),
    "daemon.json is no object": ({DAEMON: "[]"}, "is not a JSON object"),
    "registry-mirrors is a string": (
        {DAEMON: '{"registry-mirrors": "http://HOST"}'}, "is no list of addresses",
    ),
    "registry-mirrors names another": (
        {DAEMON: '{"registry-mirrors": ["https://other.lan"]}'},
        "does not name http://HOST but https://other.lan",
    ),
    "registry-mirrors is missing": ({DAEMON: "{}"}, "does not name http://HOST"),
    "a mirror with a path": (
        {DAEMON: '{"registry-mirrors": ["http://HOST/v2/"]}'}, "address has no path",
    ),
    "a mirror with the wrong scheme": (
        {DAEMON: '{"registry-mirrors": ["https://HOST"]}'}, "the mirror speaks http",
    ),
    "a mirror without a scheme": (
        {DAEMON: '{"registry-mirrors": ["HOST"]}'}, "without http:// or https://",
    ),
    "a mirror at the wrong port": (
        {DAEMON: '{"registry-mirrors": ["http://127.0.0.1:1"]}'}, "the mirror is at port",
    ),
    "a mirror with a password": (
        {DAEMON: '{"registry-mirrors": ["http://me:pw@HOST"]}'},
        "and no user and password may stand there",
    ),
    "hosts.toml is no TOML": (
        {**READS_HOSTS, HOSTS: '[host."http://HOST"\n'}, "hosts.toml: is not valid TOML",
    ),
    "hosts.toml in no directory of a registry": (
        {**READS_HOSTS, "/etc/containerd/certs.d/hosts.toml": '[host."http://HOST"]'},
        "where no client reads it",
    ),
    "hosts.toml under another name": (
        {**READS_HOSTS, "/etc/containerd/certs.d/docker.io/config.toml": '[host."http://HOST"]'},
        "is not read under this name",
    ),
    "hosts.toml of an address of Docker Hub": (
        {**READS_HOSTS, HOSTS.replace("docker.io", "registry-1.docker.io"): '[host."http://HOST"]'},
        "those of Docker Hub are docker.io/",
    ),
    "hosts.toml names another": (
        {**READS_HOSTS, HOSTS: '[host."https://other.lan"]'}, "does not name http://HOST",
    ),
    "hosts.toml with the wrong scheme": (
        {**READS_HOSTS, HOSTS: '[host."https://HOST"]'}, "the mirror speaks http",
    ),
    "hosts.toml leaves /v2 out": (
        {**READS_HOSTS, HOSTS: '[host."http://HOST"]\noverride_path = true\n'},
        "with override_path, which leaves /v2 out of the requests",
    ),
    "hosts.toml lets the mirror resolve nothing": (
        {**READS_HOSTS, HOSTS: '[host."http://HOST"]\ncapabilities = ["pull"]'},
        "capabilities lacks resolve",
    ),
    "hosts.toml names a CA that is not there": (
        {**READS_HOSTS, HOSTS: '[host."http://HOST"]\nca = "ca.pem"'},
        "names the CA /etc/containerd/certs.d/docker.io/ca.pem, which is not there",
    ),
    "config.toml is no TOML": ({CONTAINERD: "version = "}, "config.toml: is not valid TOML"),
    "config_path is not set": (
        {CONTAINERD: "version = 2", HOSTS: '[host."http://HOST"]'}, "config_path is not set",
    ),
    "config_path is another": (
        {
            CONTAINERD: READS_HOSTS[CONTAINERD].replace("/etc/containerd/certs.d", "/etc/certs"),
            HOSTS: '[host."http://HOST"]',
        },
        "config_path is /etc/certs, and hosts.toml in /etc/containerd/certs.d",
    ),
    "config_path beside registry.mirrors": (
        {
            CONTAINERD: READS_HOSTS[CONTAINERD]
            + '[plugins."io.containerd.grpc.v1.cri".registry.mirrors.x]\nendpoint = []',
            HOSTS: '[host."http://HOST"]',
        },
        "registry.mirrors beside config_path",
    ),
    "registries.conf is no TOML": ({PODMAN: "[[registry]"}, "registries.conf: is not valid TOML"),
    "registries.conf lacks the upstream in the path": (
        {
            PODMAN: '[[registry]]\nprefix = "second.example.com"\n'
            '[[registry.mirror]]\nlocation = "HOST"\ninsecure = true'
        },
        "which does not say second.example.com",
    ),
    "registries.conf says another upstream in the path": (
        {
            PODMAN: '[[registry]]\nprefix = "second.example.com"\n'
            '[[registry.mirror]]\nlocation = "HOST/docker.io"\ninsecure = true'
        },
        "which does not say second.example.com",
    ),
    "registries.conf with a scheme": (
        {PODMAN: '[[registry]]\nprefix = "docker.io"\n[[registry.mirror]]\nlocation = "http://HOST"'},
        "a location has no scheme",
    ),
    "registries.conf without insecure": (
        {
            PODMAN: '[[registry]]\nprefix = "docker.io"\n'
            '[[registry.mirror]]\nlocation = "HOST/docker.io"'
        },
        "is asked with TLS, and it speaks http",
    ),
    "registries.conf for digests only": (
        {
            PODMAN: '[[registry]]\nprefix = "docker.io"\nmirror-by-digest-only = true\n'
            '[[registry.mirror]]\nlocation = "HOST/docker.io"\ninsecure = true'
        },
        "mirror-by-digest-only keeps some pulls",
    ),
    "registries.conf for tags only": (
        {
            PODMAN: '[[registry]]\nprefix = "docker.io"\n[[registry.mirror]]\n'
            'location = "HOST/docker.io"\ninsecure = true\npull-from-mirror = "tag-only"'
        },
        "pull-from-mirror = tag-only keeps some pulls",
    ),
    "registries.conf blocks the registry": (
        {
            PODMAN: '[[registry]]\nprefix = "docker.io"\nblocked = true\n'
            '[[registry.mirror]]\nlocation = "HOST/docker.io"\ninsecure = true'
        },
        "docker.io is blocked",
    ),
    "buildkitd.toml is no TOML": ({BUILDKIT: "[registry"}, "buildkitd.toml: is not valid TOML"),
    "buildkitd.toml with the path of another": (
        {BUILDKIT: '[registry."second.example.com"]\nmirrors = ["HOST/v2"]'},
        "must be HOST/second.example.com",
    ),
    "registries.yaml names another": (
        {K3S: 'mirrors:\n  docker.io:\n    endpoint: ["http://other.lan"]\n'},
        "does not name http://HOST but http://other.lan",
    ),
    "k3s was not restarted": (
        {K3S: "mirrors:\n  docker.io:\n    endpoint:\n      - http://HOST\n"},
        "k3s has not read it",
    ),
}  # fmt: skip


@pytest.mark.parametrize("planted", PLANTED)
async def test_a_planted_misconfiguration_is_found(
    machine: Machine, office: Mirror, planted: str
) -> None:
    files, said = PLANTED[planted]
    host = office.url.removeprefix("http://")
    machine.plant({path: text.replace("HOST", host) for path, text in files.items()})
    (found,) = wrongs(await machine.examined(office.url))
    assert said.replace("HOST", host) in found


DAEMONS: dict[str, tuple[Mapping[str, str], Mapping[str, Any], str]] = {
    "the daemon was not restarted": (
        {DAEMON: '{"registry-mirrors": ["LAN"]}'},
        CLASSIC | {"RegistryConfig": registries("http://old.lan:5000")},
        "does not use the registry mirror LAN that /etc/docker/daemon.json names",
    ),
    "insecure-registries is missing": (
        {DAEMON: '{"registry-mirrors": ["LAN"]}'},
        CLASSIC | {"RegistryConfig": registries("LAN")},
        "insecure-registries lacks m.invalid:5000",
    ),
    "insecure-registries was not read": (
        {DAEMON: '{"registry-mirrors": ["LAN"], "insecure-registries": ["m.invalid:5000"]}'},
        CLASSIC | {"RegistryConfig": registries("LAN")},
        "has not read that /etc/docker/daemon.json lists m.invalid:5000",
    ),
    "the daemon asks a proxy": (
        {DAEMON: '{"registry-mirrors": ["LAN"], "insecure-registries": ["m.invalid:5000"]}'},
        {
            "HttpProxy": "http://proxy:3128",
            "NoProxy": "localhost,example.com,m.invalid:80",
            "RegistryConfig": registries("LAN", IndexConfigs={"m.invalid:5000": {"Secure": False}}),
        },
        "asks a proxy (HTTP_PROXY) for the mirror, for NO_PROXY does not name m.invalid",
    ),
    "hosts.toml for the classic store": (
        {DOCKER_HOSTS: '[host."LAN"]'},
        CLASSIC | {"ServerVersion": "28.1.0"},
        "Docker 28.1.0 with the classic image store does not read hosts.toml",
    ),
    "hosts.toml before Engine 28": (
        {DOCKER_HOSTS: '[host."LAN"]'},
        {"ServerVersion": "27.5.1"},
        "Docker 27.5.1 with the containerd image store does not read hosts.toml",
    ),
}


@pytest.mark.parametrize("planted", DAEMONS)
async def test_what_the_daemon_says_otherwise_is_found(machine: Machine, planted: str) -> None:
    files, info, said = DAEMONS[planted]
    lan = "http://m.invalid:5000"
    machine.plant({path: text.replace("LAN", lan) for path, text in files.items()})
    if mirrors := info.get("RegistryConfig", {}).get("Mirrors"):
        config = info["RegistryConfig"] | {"Mirrors": [url.replace("LAN", lan) for url in mirrors]}
        info = dict(info) | {"RegistryConfig": config}
    async with machine.daemon(**info):
        found = wrongs(await machine.examined(lan))
    assert said.replace("LAN", lan) in found[0]


async def test_a_plain_mirror_elsewhere_needs_leave_of_buildkit(machine: Machine) -> None:
    machine.plant({BUILDKIT: '[registry."docker.io"]\nmirrors = ["m.invalid/docker.io"]'})
    found = wrongs(await machine.examined("http://m.invalid"))
    assert "is not asked by http, which is what it speaks" in found[0]


async def test_a_mirror_with_tls_on_this_machine_is_http_for_buildkit_unless_told(
    machine: Machine,
) -> None:
    machine.plant({BUILDKIT: '[registry."docker.io"]\nmirrors = ["localhost:5443/docker.io"]'})
    found = wrongs(await machine.examined("https://localhost:5443"))
    assert "is not asked by https, which is what it speaks" in found[0]


async def test_a_daemon_that_cannot_be_asked_is_said_and_no_fault(
    machine: Machine, office: Mirror
) -> None:
    machine.plant({DAEMON: f'{{"registry-mirrors": ["{office.url}"]}}', "/run/docker.sock": ""})
    report = await machine.examined(office.url)
    assert wrongs(report) == []
    assert "the Docker daemon: cannot be asked" in "\n".join(report.lines())


@pytest.mark.parametrize(
    ("path", "text", "said"),
    [
        (CONTAINERD, 'disabled_plugins = ["cri"]', "CRI is disabled"),
        (CONTAINERD, "version = 3", "config_path is not set; only containerd 2.2"),
        (
            CONTAINERD,
            SEVERAL,
            "config_path names several directories",
        ),
    ],
)
async def test_what_depends_on_the_version_is_a_note(
    machine: Machine, office: Mirror, path: str, text: str, said: str
) -> None:
    machine.plant({path: text, HOSTS: f'[host."{office.url}"]'})
    report = await machine.examined(office.url)
    assert wrongs(report) == []
    assert said in "\n".join(report.lines())


async def test_a_hosts_toml_for_a_registry_of_ones_own_is_no_fault(
    machine: Machine, office: Mirror
) -> None:
    own = HOSTS.replace("docker.io", "own.lan")
    machine.plant(
        READS_HOSTS | {HOSTS: f'[host."{office.url}"]', own: '[host."https://own.lan"]\nca = "x"'}
    )
    report = await machine.examined(office.url)
    assert wrongs(report) == []
    assert f"own.lan/hosts.toml: does not name {office.url}" in "\n".join(report.lines())


async def test_nothing_pointed_at_the_mirror_is_found(machine: Machine, office: Mirror) -> None:
    (found,) = wrongs(await machine.examined(office.url))
    assert "no Docker, containerd, k3s, Podman or BuildKit is pointed at" in found


#: Whether the file has the word, the version of the client, what is said ("" for nothing).
REFERRERS = [
    (True, "containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20", "rejects such a file"),
    (True, "containerd github.com/containerd/containerd/v2 v2.1.4 75cb2b7", "rejects such a file"),
    (True, "containerd github.com/containerd/containerd/v2 v2.2.0 abc", ""),
    (False, "containerd github.com/containerd/containerd/v2 v2.1.4 75cb2b7", ""),
    (False, "containerd github.com/containerd/containerd/v2 v2.3.4 abc", "asks docker.io itself"),
    (False, "", ""),
    (True, "", ""),
]
DOCKER_REFERRERS = [
    (True, "28.5.1", "rejects such a file"),
    (False, "28.5.1", ""),
    (True, "29.0.1", ""),
    (False, "29.1.0", "asks docker.io itself"),
    (True, "29.1.0", ""),
    (True, "30.0.0-rc.1", ""),
]


def said_of_referrers(report: Report, said: str) -> None:
    found = [finding for finding in report.findings if "referrers" in finding.what]
    assert [said in finding.what for finding in found] == ([True] if said else [])
    for finding in found:
        wrong = "rejects" in said
        assert (finding.verdict is Verdict.WRONG) is wrong
        assert ("referrers" in finding.fix) is not wrong


@pytest.mark.parametrize(("word", "version", "said"), REFERRERS)
async def test_containerd_and_its_hosts_toml_agree_on_referrers(
    machine: Machine, office: Mirror, word: bool, version: str, said: str
) -> None:
    machine.plant(READS_HOSTS)
    told = Told(office.url, ("docker.io",), referrers=word)
    machine.plant_snippet(clients.containerd(told))
    said_of_referrers(await machine.examined(office.url, containerd_version=version), said)


@pytest.mark.parametrize(("word", "version", "said"), DOCKER_REFERRERS)
async def test_docker_and_its_hosts_toml_agree_on_referrers(
    machine: Machine, office: Mirror, word: bool, version: str, said: str
) -> None:
    told = Told(office.url, ("docker.io",), referrers=word)
    machine.plant_snippet(clients.docker_hosts(told))
    machine.plant({DAEMON: "{}"})
    async with machine.daemon(ServerVersion=version):
        said_of_referrers(await machine.examined(office.url), said)
