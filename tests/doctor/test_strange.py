"""Whatever stands in a client's files, an examination ends with findings and never breaks off."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.doctor import buildkit, containerd, docker, hosts, k3s, podman
from mirror.doctor.docker import parsed
from mirror.doctor.files import Tree
from mirror.doctor.target import MirrorAddress
from mirror.upstream.proxies import NoProxy

pytestmark = [pytest.mark.slow]

TARGET = MirrorAddress("http://m.lan:5000")
WORDS = [
    "registry", "mirror", "mirrors", "prefix", "location", "insecure", "host", "server", "ca",
    "capabilities", "plugins", "cri", "config_path", "version", "docker.io", "blocked", "http",
    "io.containerd.grpc.v1.cri", "pull-from-mirror", "registry-mirrors", "insecure-registries",
    "http://m.lan:5000", "m.lan:5000", "m.lan:5000/docker.io", "http://[", "http://m.lan:x",
    "RegistryConfig", "Mirrors", "IndexConfigs", "Secure", "DriverStatus", "disabled_plugins",
    "pull", "resolve", "InsecureRegistryCIDRs", "10.0.0.0/8", "m.lan:5000/v2", "HttpProxy",
]  # fmt: skip
WORD = st.sampled_from(WORDS) | st.text(max_size=5)
VALUES = st.recursive(
    WORD | st.booleans() | st.integers() | st.floats() | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORD, inner, max_size=4),
    max_leaves=25,
)
TABLES = st.dictionaries(WORD, VALUES, max_size=5)


@dataclass(frozen=True, slots=True)
class Strange(Tree):
    """A machine on which every file has the same content."""

    content: Any = None

    def exists(self, path: str) -> bool:
        return len(path) % 2 == 0

    def names(self, path: str) -> list[str]:
        return ["hosts.toml", "docker.io", "m.lan_5000_", "x.conf", "x.crt"]

    def text(self, path: str) -> str:
        return str(self.content)

    def toml(self, path: str) -> Any:
        return self.content

    def json(self, path: str) -> Any:
        return self.content


@pytest.mark.long
@pytest.mark.slow
@given(TABLES, TABLES)
def test_an_examination_takes_any_content(content: dict[str, Any], info: dict[str, Any]) -> None:
    tree = Strange(Path("/"), content=content)
    for daemon in (None, parsed(info)):
        docker.inspect(tree, TARGET, daemon)
    for version in ("", "1.7.20", "2.2.0"):
        containerd.inspect(tree, TARGET, version)
    for client in (k3s, podman, buildkit):
        client.inspect(tree, TARGET)
    for name in (*docker.named(tree), *hosts.named(tree, "/x"), *k3s.named(tree)):
        TARGET.likeness(name)
    podman.named(tree)


@given(st.text(":,.*[]0123456789/ab", max_size=20), WORD, st.integers(0, 65535))
def test_no_proxy_takes_any_text(no_proxy: str, host: str, port: int) -> None:
    assert NoProxy(no_proxy).covers(host, port) in {True, False}
