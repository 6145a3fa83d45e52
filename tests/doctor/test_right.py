"""What `mirror client` prints gets no complaint."""

from pathlib import Path

import pytest

from mirror import clients
from mirror.clients import Mirror as Told
from tests.doctor.machine import Machine, registries, wrongs
from tests.fakes import FakeRegistry, image
from tests.running import Mirror, running

pytestmark = [pytest.mark.slow]

NAMES = ("docker.io", "second.example.com")
CONTAINERD = {
    "/etc/containerd/config.toml": 'version = 2\n[plugins."io.containerd.grpc.v1.cri".registry]\n'
    'config_path = "/etc/containerd/certs.d"\n'
}


@pytest.mark.parametrize(
    "client",
    [clients.docker, clients.docker_hosts, clients.containerd, clients.podman, clients.buildkit],
)
async def test_a_client_that_was_told_right_gets_no_complaint(
    machine: Machine, office: Mirror, client
) -> None:
    machine.plant_snippet(client(Told(office.url, NAMES)))
    if client is clients.containerd:
        machine.plant(CONTAINERD)
    report = await machine.examined(office.url)
    assert wrongs(report) == []
    assert report.healthy
    assert report.lines()[-1] == f"the mirror {office.url}: nothing is wrong"
    probed = [finding.where for finding in report.findings if "asked by" in finding.where]
    assert len(probed) == (1 if client is clients.docker else 2)


async def test_k3s_that_was_told_right_gets_no_complaint(machine: Machine, office: Mirror) -> None:
    machine.plant_snippet(clients.k3s(Told(office.url, NAMES)))
    made = "/var/lib/rancher/k3s/agent/etc/containerd/certs.d/docker.io/hosts.toml"
    machine.plant({made: f'server = "https://x/v2"\n[host."{office.url}/v2"]\n'})
    assert wrongs(await machine.examined(office.url)) == []


@pytest.mark.parametrize(
    "text",
    [
        'server = "URL"\n',
        'server = "URL/v2"\ncapabilities = ["pull", "resolve"]\n[host."http://spegel:5000"]\n',
        '[host."URL/"]\n',
        '[host."URL/docker.io"]\n',
        '[host."URL/v2/docker.io"]\noverride_path = true\n',
    ],
)
async def test_every_hosts_toml_that_leads_to_the_mirror_is_right(
    machine: Machine, office: Mirror, text: str
) -> None:
    machine.plant(CONTAINERD)
    machine.plant({"/etc/containerd/certs.d/docker.io/hosts.toml": text.replace("URL", office.url)})
    report = await machine.examined(office.url)
    assert wrongs(report) == []
    assert f"{office.url} for docker.io, asked by ns=: is answered" in "\n".join(report.lines())


@pytest.mark.parametrize("path", ["/v2", "/v2/docker.io"])
async def test_an_endpoint_of_k3s_may_have_the_path_of_the_api(
    machine: Machine, office: Mirror, path: str
) -> None:
    endpoint = f"{office.url}{path}"
    made = "/var/lib/rancher/k3s/agent/etc/containerd/certs.d/docker.io/hosts.toml"
    machine.plant(
        {
            "/etc/rancher/k3s/registries.yaml": (
                f'mirrors:\n  docker.io:\n    endpoint: ["{endpoint}"]\n'
            ),
            made: f'[host."{endpoint}"]\noverride_path = true\n',
        }
    )
    assert wrongs(await machine.examined(office.url)) == []


async def test_the_mirror_that_the_clients_name_is_found_without_url(
    machine: Machine, office: Mirror
) -> None:
    machine.plant_snippet(clients.podman(Told(office.url, NAMES)))
    report = await machine.examined(None)
    assert report.url == office.url
    assert wrongs(report) == []


async def test_this_machines_own_mirror_goes_before_another_that_is_named_first(
    machine: Machine, office: Mirror
) -> None:
    both = f'{{"registry-mirrors": ["https://elsewhere.invalid", "{office.url}"]}}'
    machine.plant({"/etc/docker/daemon.json": both})
    assert (await machine.examined(None, office.url)).url == office.url


@pytest.mark.parametrize("store", ["classic", "containerd"])
async def test_a_daemon_that_has_read_its_file_gets_no_complaint(
    machine: Machine, office: Mirror, store: str
) -> None:
    machine.plant_snippet(clients.docker(Told(office.url, NAMES)))
    status = [["driver-type", "io.containerd.snapshotter.v1"]] if store == "containerd" else None
    config = registries(office.url)
    async with machine.daemon(RegistryConfig=config, DriverStatus=status):
        report = await machine.examined(office.url)
    assert wrongs(report) == []
    way = "ns=" if store == "containerd" else "plain name"
    assert any(finding.where.endswith(way) for finding in report.findings)


async def test_a_daemon_told_by_a_flag_gets_no_complaint(machine: Machine, office: Mirror) -> None:
    async with machine.daemon(RegistryConfig=registries(office.url)):
        assert wrongs(await machine.examined(office.url)) == []


async def test_a_docker_that_reads_hosts_toml_needs_no_registry_mirrors(
    machine: Machine, office: Mirror
) -> None:
    machine.plant_snippet(clients.docker_hosts(Told(office.url, NAMES)))
    machine.plant({"/etc/docker/daemon.json": "{}"})
    async with machine.daemon():
        assert wrongs(await machine.examined(office.url)) == []


async def test_a_proxy_that_is_not_asked_for_the_mirror_gets_no_complaint(
    machine: Machine, office: Mirror
) -> None:
    info = {"HttpProxy": "http://proxy:3128", "RegistryConfig": registries(office.url)}
    async with machine.daemon(**info):
        assert wrongs(await machine.examined(office.url)) == []


async def test_a_stale_answer_is_said_and_no_fault_of_the_client(
    machine: Machine, tmp_path: Path, upstream: FakeRegistry
) -> None:
    upstream.add_image("library/busybox", image(b"layer"), "latest")
    tags = {"max_age": "0s"}
    async with running(tmp_path / "cache", {"docker.io": upstream.url}, tags=tags) as mirror:
        machine.plant_snippet(clients.docker(Told(mirror.url, NAMES)))
        for _ in range(2):  # a miss, and one that is revalidated
            await mirror.get("/v2/library/busybox/manifests/latest")
            report = await machine.examined(mirror.url)
            assert "is answered" in report.lines()[-2]
        await upstream.stop()
        report = await machine.examined(mirror.url)
    assert wrongs(report) == []
    assert "served as last known" in report.lines()[-2]
