"""Which upstream a request means; the first match wins."""

import pytest

from mirror.oci.reference import InvalidName
from mirror.upstream.routing import Names, Router, Target, UnknownRegistryError

HUB, MCR = "docker.io", "mcr.microsoft.com"


@pytest.fixture
def directory() -> Router:
    hub = Names(HUB, aliases=("index.docker.io",), library=True)
    mcr = Names(MCR, hosts=("mcr.corp",))
    local = Names("localhost:5001")
    ported = Names("ported.example.com:443")
    return Router([hub, mcr, local, ported], HUB)


@pytest.mark.parametrize(
    ("name", "prefix", "namespace", "host", "expected"),
    [
        ("alpine", "", None, "mirror", (HUB, "library/alpine")),
        ("org/app", "", None, "mirror", (HUB, "org/app")),
        ("dotnet/sdk", "", MCR, "mirror", (MCR, "dotnet/sdk")),
        ("alpine", "", "index.docker.io", "mirror", (HUB, "library/alpine")),
        ("alpine", "", "DOCKER.IO", "mirror", (HUB, "library/alpine")),
        ("dotnet/sdk", "", None, "mcr.corp", (MCR, "dotnet/sdk")),
        ("dotnet/sdk", "", None, "MCR.corp", (MCR, "dotnet/sdk")),
        ("dotnet/sdk", MCR, None, "mirror", (MCR, "dotnet/sdk")),
        ("mcr.microsoft.com/dotnet/sdk", "", None, "mirror", (MCR, "dotnet/sdk")),
        ("docker.io/alpine", "", None, "mirror", (HUB, "library/alpine")),
        ("localhost:5001/app", "", None, "mirror", ("localhost:5001", "app")),
        # the usual port, given or left out
        ("alpine", "", "docker.io:443", "mirror", (HUB, "library/alpine")),
        ("alpine", "", "index.docker.io:443", "mirror", (HUB, "library/alpine")),
        ("docker.io:443/alpine", "", None, "mirror", (HUB, "library/alpine")),
        ("alpine", "docker.io:443", None, "mirror", (HUB, "library/alpine")),
        ("docker.io:443/alpine", "", HUB, "mirror", (HUB, "library/alpine")),
        ("dotnet/sdk", "", None, "mcr.corp:443", (MCR, "dotnet/sdk")),
        ("app/x", "", "ported.example.com", "mirror", ("ported.example.com:443", "app/x")),
        # ns before Host, Host before prefix, prefix before the name
        ("app/x", "", HUB, "mcr.corp", (HUB, "app/x")),
        ("app/x", HUB, None, "mcr.corp", (MCR, "app/x")),
        # said twice by Podman
        ("mcr.microsoft.com/dotnet/sdk", "", MCR, "mirror", (MCR, "dotnet/sdk")),
        # not a registry but a repository of the one that was named
        ("dotted.name/app", "", MCR, "mirror", (MCR, "dotted.name/app")),
    ],
)
def test_a_request_means(directory, name, prefix, namespace, host, expected):
    found = directory.resolve(name, prefix=prefix, namespace=namespace, host=host)
    assert found == Target(*expected)


@pytest.mark.parametrize(
    ("name", "prefix", "namespace"),
    [
        ("registry.example.com/app", "", None),
        ("app", "registry.example.com", None),
        ("app", "", "registry.example.com"),
    ],
)
def test_a_registry_that_is_not_configured_is_named(directory, name, prefix, namespace):
    with pytest.raises(UnknownRegistryError) as caught:
        directory.resolve(name, prefix=prefix, namespace=namespace, host="mirror")
    assert caught.value.name == "registry.example.com"


def test_what_is_left_must_be_a_repository(directory):
    with pytest.raises(InvalidName):
        directory.resolve("localhost:5002/app", prefix="", namespace=MCR, host="mirror")


def test_a_registry_is_found_by_where_clients_connect_to():
    """By its names first, then by where it is; a name without a port means the usual one."""
    hub = Names("docker.io", ("index.docker.io", "registry-1.docker.io"), ("hub.lan:8443",))
    lan = Names("r.lan:5000", netloc="10.1.2.3:5000")
    behind = Names("b.lan", netloc="registry-1.docker.io")
    directory = Router([hub, lan, behind], "docker.io")
    found = {
        ("registry-1.docker.io", 443): "docker.io",
        ("docker.io", 443): "docker.io",
        ("hub.lan", 8443): "docker.io",
        ("r.lan", 5000): "r.lan:5000",
        ("10.1.2.3", 5000): "r.lan:5000",
        ("b.lan", 443): "b.lan",
        ("registry-1.docker.io", 5000): None,
        ("hub.lan", 443): None,
        ("r.lan", 443): None,
        ("elsewhere.lan", 443): None,
        ("index.docker.io", 443): "docker.io",
    }
    assert {place: directory.lookup_place(*place, 443) for place in found} == found


def test_inside_the_proxy_a_name_is_the_registrys_own():
    directory = Router([Names("docker.io", library=True), Names("quay.io")], "docker.io")

    def target(name: str, namespace: str | None = None) -> str:
        found = directory.resolve(
            name, prefix="", namespace=namespace, host="docker.io", connected="quay.io"
        )
        return str(found)

    assert target("team/app") == "quay.io team/app"
    assert target("docker.io/team/app") == "quay.io docker.io/team/app"
    assert target("app", "docker.io") == "docker.io library/app", "ns= goes before"
