"""A Docker that has the mirror as its proxy is told right, or what is wrong with that."""

import json

import pytest

from mirror import clients
from mirror.ca import ensure_authority
from mirror.clients import Mirror as Told
from tests.doctor.machine import CLASSIC, Machine, wrongs
from tests.fakes import image
from tests.running import Mirror, running

NAMES = ("docker.io",)
SYSTEM = "/etc/ssl/certs/ca-certificates.crt"
DAEMON = "/etc/docker/daemon.json"


@pytest.fixture
async def office(tmp_path, upstream):
    upstream.add_image("library/busybox", image(b"layer"), "latest")
    proxy = {"listen": "127.0.0.1:0"}
    async with running(tmp_path / "cache", {"docker.io": upstream.url}, proxy=proxy) as mirror:
        yield mirror


@pytest.fixture
def trusted(tmp_path, office: Mirror, machine: Machine) -> Machine:
    """A machine that was told of the mirror's CA."""
    authority = ensure_authority(tmp_path / "cache-state", "mirror")
    machine.plant({SYSTEM: authority.public_pem().decode()})
    return machine


async def test_what_mirror_client_prints_gets_no_complaint(trusted: Machine, office: Mirror):
    trusted.plant_snippet(clients.docker_proxy(Told(office.proxy, NAMES)))
    report = await trusted.examined(office.url)
    assert wrongs(report) == []
    said = f"Docker through the proxy {office.proxy}: is answered for Docker Hub, by its usual name"
    assert f"ok     {said}" in report.lines()


async def test_a_daemon_that_was_told_by_systemd_is_asked(trusted: Machine, office: Mirror):
    info = {**CLASSIC, "HttpsProxy": office.proxy, "NoProxy": "localhost"}
    async with trusted.daemon(**info):
        report = await trusted.examined(office.url)
    assert wrongs(report) == []
    assert report.healthy


async def test_a_daemon_that_does_not_trust_the_ca_is_found(machine: Machine, office: Mirror):
    stranger = ensure_authority(machine.root / "other", "other").public_pem().decode()
    machine.plant({SYSTEM: stranger})
    machine.plant_snippet(clients.docker_proxy(Told(office.proxy, NAMES)))
    (found,) = wrongs(await machine.examined(office.url))
    assert "does not trust the CA of the mirror" in found


async def test_the_port_of_the_registry_api_is_no_proxy(trusted: Machine, office: Mirror):
    trusted.plant({DAEMON: json.dumps({"proxies": {"https-proxy": office.url}})})
    (found,) = wrongs(await trusted.examined(office.url))
    assert "is refused: 4" in found


async def test_a_port_where_nothing_listens_is_found(trusted: Machine, office: Mirror):
    proxy = "http://me:secret@127.0.0.1:9"
    trusted.plant({DAEMON: json.dumps({"proxies": {"https-proxy": proxy}})})
    report = await trusted.examined(office.url)
    (found,) = wrongs(report)
    assert "cannot get there" in found
    assert "secret" not in "\n".join(report.lines())


async def test_another_proxy_is_none_of_the_mirrors(trusted: Machine, office: Mirror):
    proxies = {"https-proxy": "http://proxy.lan:3128"}
    mirrors = {"registry-mirrors": [office.url], "proxies": proxies}
    trusted.plant({DAEMON: json.dumps(mirrors)})
    report = await trusted.examined(office.url)
    assert wrongs(report) == []
    assert not any("through the proxy" in line for line in report.lines())
