"""What is printed for a client is what the client's own parser takes, for every upstream."""

import json
import tomllib
from collections.abc import Callable
from dataclasses import replace

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mirror import clients
from mirror.clients import Mirror, Snippet

HUB = "docker.io"
UPSTREAMS = (HUB, "ghcr.io", "registry.example.com:5443")
HTTP = Mirror("http://m.lan:5000", UPSTREAMS)
HTTPS = Mirror("https://m.lan:5000", UPSTREAMS)
WITH_CA = Mirror("https://m.lan:5000", UPSTREAMS, ca_file="/etc/ssl/office ca.pem")
LOOPBACK = Mirror("http://[::1]:5000", UPSTREAMS)
TLS_LOOPBACK = Mirror("https://127.0.0.1:5000", UPSTREAMS, ca_file="/etc/ssl/ca.pem")
MIRRORS = [HTTP, HTTPS, WITH_CA, LOOPBACK, TLS_LOOPBACK]

NAMES = st.from_regex(r"[a-z0-9]([a-z0-9.-]{0,20}[a-z0-9])?(:[0-9]{1,5})?", fullmatch=True)
ADDRESSES = st.sampled_from(["http://m.lan:5000", "https://m.lan", "http://10.0.0.1:80"])
ALL = [clients.docker_hosts, clients.containerd, clients.k3s, clients.podman, clients.buildkit]


@pytest.mark.parametrize("mirror", MIRRORS)
@pytest.mark.parametrize("snippet_for", [clients.docker_hosts, clients.containerd])
def test_a_hosts_toml_per_registry_tries_the_mirror_and_then_the_registry(
    mirror: Mirror, snippet_for: Callable[[Mirror], Snippet]
) -> None:
    files = snippet_for(mirror).files
    assert [file.path.split("/")[-2:] for file in files] == [[n, "hosts.toml"] for n in UPSTREAMS]
    for name, file in zip(UPSTREAMS, files, strict=True):
        parsed = tomllib.loads(file.text)
        origin = "registry-1.docker.io" if name == HUB else name
        assert parsed["server"] == f"https://{origin}"
        (host,) = parsed["host"].items()
        settings = {"capabilities": ["pull", "resolve"], "dial_timeout": "3s"}
        if mirror.ca_file:
            settings["ca"] = mirror.ca_file
        assert host == (mirror.url, settings)
        assert file.text.splitlines()[0] == f"# {file.path}"


@pytest.mark.parametrize("snippet_for", [clients.docker_hosts, clients.containerd])
def test_hosts_toml_offers_referrers_only_to_clients_that_know_the_word(
    snippet_for: Callable[[Mirror], Snippet],
) -> None:
    for known in (False, True):
        snippet = snippet_for(replace(HTTP, referrers=known))
        for file in snippet.files:
            (host,) = tomllib.loads(file.text)["host"].values()
            assert ("referrers" in host["capabilities"]) is known
            assert host["capabilities"][:2] == ["pull", "resolve"]
        advice = "\n".join(snippet.advice)
        assert 'rejects a file with "referrers"' in advice
        assert ("add --referrers" in advice) is not known


def test_a_registry_on_this_machine_keeps_the_scheme_that_containerd_knows() -> None:
    (file,) = clients.containerd(Mirror("http://m.lan:5000", ("localhost:5001",))).files
    assert "server" not in tomllib.loads(file.text)


def test_a_registry_without_tls_is_asked_without_it_where_the_mirror_cannot_answer() -> None:
    registries = ("registry.lan:5000", "registry.lan")
    mirror = Mirror("http://m.lan:5000", registries, plain_upstreams=frozenset(registries[:1]))
    servers = [tomllib.loads(file.text)["server"] for file in clients.containerd(mirror).files]
    assert servers == ["http://registry.lan:5000", "https://registry.lan"]


def test_docker_and_containerd_have_directories_of_their_own() -> None:
    assert clients.docker_hosts(HTTP).files[0].path.startswith("/etc/docker/certs.d/")
    assert clients.containerd(HTTP).files[0].path.startswith("/etc/containerd/certs.d/")


def test_containerds_advice_names_config_path_for_1_x_and_2_x() -> None:
    advice = "\n".join(clients.containerd(HTTP).advice)
    assert '[plugins."io.containerd.grpc.v1.cri".registry]' in advice
    assert "[plugins.'io.containerd.cri.v1.images'.registry]" in advice
    assert advice.count('config_path = "/etc/containerd/certs.d"') == 2


@pytest.mark.parametrize("mirror", MIRRORS)
def test_k3s_gets_one_endpoint_per_registry_and_the_ca_by_the_mirrors_address(
    mirror: Mirror,
) -> None:
    parsed = yaml.safe_load(clients.k3s(mirror).text)
    assert parsed["mirrors"] == {name: {"endpoint": [mirror.url]} for name in UPSTREAMS}
    configs = {mirror.netloc: {"tls": {"ca_file": mirror.ca_file}}} if mirror.ca_file else None
    assert parsed.get("configs") == configs


@pytest.mark.parametrize("mirror", MIRRORS)
def test_podman_gets_a_path_per_registry_and_leave_for_plain_http(mirror: Mirror) -> None:
    parsed = tomllib.loads(clients.podman(mirror).text)
    plain = {"insecure": True} if mirror.plain else {}
    assert parsed["registry"] == [
        {
            "prefix": name,
            "location": name,
            "mirror": [{"location": f"{mirror.netloc}/{name}", "pull-from-mirror": "all", **plain}],
        }
        for name in UPSTREAMS
    ]


@pytest.mark.parametrize("mirror", MIRRORS)
def test_buildkit_gets_a_path_per_registry_and_how_to_speak_to_the_mirror(mirror: Mirror) -> None:
    registries = tomllib.loads(clients.buildkit(mirror).text)["registry"]
    how = registries.pop(mirror.netloc, None)
    assert registries == {n: {"mirrors": [f"{mirror.netloc}/{n}"]} for n in UPSTREAMS}
    wanted: dict[str, object] = {"ca": [mirror.ca_file]} if mirror.ca_file else {}
    if mirror in {HTTP, LOOPBACK}:
        wanted["http"] = True
    if mirror is TLS_LOOPBACK:  # which BuildKit takes for http
        wanted["http"] = False
    assert how == (wanted or None)


@pytest.mark.parametrize(
    ("snippet_for", "path"),
    [
        (clients.docker, "/etc/docker/certs.d/m.lan:5000/ca.crt"),
        (clients.podman, "/etc/containers/certs.d/m.lan:5000/ca.crt"),
    ],
)
def test_a_ca_that_a_client_finds_by_place_is_copied_there(
    snippet_for: Callable[[Mirror], Snippet], path: str
) -> None:
    snippet = snippet_for(WITH_CA)
    assert snippet.ca_copy == path
    assert any(line.endswith(f"{WITH_CA.ca_file} {path}") for line in snippet.advice)
    assert snippet_for(HTTPS).ca_copy == ""


@pytest.mark.long
@given(st.lists(NAMES, min_size=1, max_size=5, unique=True), ADDRESSES, st.text("a /\"'\\é"))
def test_every_upstream_is_in_every_text_and_every_text_parses(
    names: list[str], url: str, ca: str
) -> None:
    mirror = Mirror(url, tuple(names), names[0], f"/{ca}" if url.startswith("https") else "")
    assert json.loads(clients.docker(mirror).text)["registry-mirrors"] == [url]
    assert set(yaml.safe_load(clients.k3s(mirror).text)["mirrors"]) == set(names)
    podman = tomllib.loads(clients.podman(mirror).text)["registry"]
    assert [table["prefix"] for table in podman] == names
    buildkit = tomllib.loads(clients.buildkit(mirror).text)["registry"]
    assert {name for name in buildkit if "mirrors" in buildkit[name]} == set(names)
    for snippet_for in (clients.docker_hosts, clients.containerd):
        hosts = [tomllib.loads(file.text)["host"] for file in snippet_for(mirror).files]
        assert [list(host) for host in hosts] == [[url]] * len(names)


@pytest.mark.parametrize("snippet_for", ALL)
@pytest.mark.parametrize("mirror", MIRRORS)
def test_a_text_is_its_files_one_after_the_other(
    snippet_for: Callable[[Mirror], Snippet], mirror: Mirror
) -> None:
    snippet = snippet_for(mirror)
    assert snippet.text == "\n".join(file.text for file in snippet.files)
    assert all(file.text.endswith("\n") and "\n\n\n" not in file.text for file in snippet.files)
