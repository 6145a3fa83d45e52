"""daemon.json works when pasted."""

import json

import pytest

from mirror import clients
from mirror.clients import Mirror

HUB = "docker.io"


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:5000", "http://[::1]:5000", "http://localhost:5000", "https://m.lan"]
)
def test_docker_needs_no_leave_for_loopback_and_tls(url: str) -> None:
    assert json.loads(clients.docker(Mirror(url, (HUB,))).text) == {"registry-mirrors": [url]}


@pytest.mark.parametrize("host", ["m.lan:5000", "10.0.0.1:5000", "m.lan"])
def test_docker_needs_leave_for_plain_http_from_elsewhere(host: str) -> None:
    assert json.loads(clients.docker(Mirror(f"http://{host}", (HUB,))).text) == {
        "registry-mirrors": [f"http://{host}"],
        "insecure-registries": [host],
    }


def test_other_upstreams_are_shown_behind_the_mirrors_address() -> None:
    advice = "\n".join(clients.docker(Mirror("http://m.lan:5000", (HUB, "ghcr.io"))).advice)
    assert "docker pull m.lan:5000/ghcr.io/IMAGE" in advice
    assert "--store containerd" in advice


def test_another_default_than_docker_hub_is_warned_about() -> None:
    advice = "\n".join(clients.docker(Mirror("http://m.lan:5000", (HUB, "r.lan"), "r.lan")).advice)
    assert "r.lan" in advice
    assert "before 29" in advice


@pytest.mark.parametrize(
    ("listen", "tls", "url"),
    [
        ("0.0.0.0", False, "http://here:5000"),
        ("::", False, "http://here:5000"),
        ("", True, "https://here:5000"),
        ("127.0.0.1", False, "http://127.0.0.1:5000"),
        ("fd00::1", True, "https://[fd00::1]:5000"),
    ],
)
def test_a_mirror_that_listens_everywhere_is_reached_by_its_hosts_name(
    listen: str, tls: bool, url: str
) -> None:
    assert clients.reachable_url(listen, 5000, "here", tls=tls) == url


@pytest.mark.parametrize(
    ("hostname", "host"),
    [("3f2a9c0b7d1e", "localhost"), ("3f2a9c0b7d1e.lan", "3f2a9c0b7d1e.lan"), ("cafe", "cafe")],
)
def test_the_id_of_a_container_is_no_name_to_reach_it_by(hostname: str, host: str) -> None:
    assert clients.reachable_url("0.0.0.0", 5000, hostname) == f"http://{host}:5000"
    assert clients.reachable_url("10.0.0.1", 5000, hostname) == "http://10.0.0.1:5000"
