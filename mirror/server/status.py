"""The content of the pages for people, from ledger, store and configuration."""

from collections.abc import Callable, Sequence
from typing import Final

from yarl import URL

from mirror import __version__, clients
from mirror.clients import Mirror, Snippet
from mirror.config.addresses import lookup_outermost
from mirror.config.model import Config
from mirror.oci.digest import Digest
from mirror.server.recorder import StatsRecorder
from mirror.stats.report import Image, StatsReport
from mirror.store.interface import IndexUnavailableError
from mirror.store.local.eviction import Usage
from mirror.store.local.layout import MANIFESTS, ObjectKey
from mirror.store.local.objects import Objects
from mirror.ui.status import Guide, Source, StatusHandler

_EVERY: Final = "Every registry, by its usual names."
_CLIENTS: Final = (
    (
        *("docker", "Docker", "docker", clients.docker),
        "Docker of any version: Docker Hub by its usual names, other registries by a path.",
    ),
    (
        *(
            "docker-containerd",
            "Docker 28+, containerd store",
            "docker --store containerd",
            clients.docker_hosts,
        ),
        "Docker 28 and later with the containerd image store: every registry, by its usual names.",
    ),
    ("containerd", "containerd, Kubernetes", "containerd", clients.containerd, _EVERY),
    ("k3s", "k3s, RKE2", "k3s", clients.k3s, _EVERY),
    ("podman", "Podman, Buildah, Skopeo, CRI-O", "podman", clients.podman, _EVERY),
    ("buildkit", "BuildKit, buildx", "buildkit", clients.buildkit, _EVERY),
)


def status_handler(config: Config, recorder: StatsRecorder, objects: Objects) -> StatusHandler:
    """The handler of the pages for people."""
    default = config.default_upstream()
    names = [default, *(name for name in config.enabled() if name != default)]
    guides = _guides(config, tuple(names), default)
    return StatusHandler(__version__, names, default, _source(recorder, objects), guides)


def _guides(config: Config, upstreams: tuple[str, ...], default: str) -> list[Guide]:
    def of(make: Callable[[Mirror], Snippet]) -> Callable[[str], Snippet]:
        return lambda url: make(Mirror(url, upstreams, default))

    guides = [
        Guide(key, name, command, covers, of(make)) for key, name, command, make, covers in _CLIENTS
    ]
    proxy = lookup_outermost(config.proxy.addresses())
    if proxy is None or not proxy.port:
        return guides

    def by_proxy(url: str) -> Snippet:
        return of(clients.docker_proxy)(str(URL(url).with_scheme("http").with_port(proxy.port)))

    command = "docker --proxy daemon"
    docker = Guide("docker-proxy", "Docker, by proxy", command, _EVERY, by_proxy, by_proxy=True)
    return [*guides, docker]


def _source(recorder: StatsRecorder, objects: Objects) -> Source:
    async def state(recent: int, images: int) -> StatsReport:
        return await recorder.ledger.state(recent=recent, images=images)

    async def usage() -> Usage | None:
        try:
            return await objects.usage()
        except (OSError, IndexUnavailableError):
            return None

    async def held(images: Sequence[Image]) -> Sequence[Image]:
        keys = {image: _key_of(image) for image in images if image.digest}
        try:
            there = await objects.held(keys.values())
        except IndexUnavailableError:
            return ()
        return [image for image, key in keys.items() if key in there]

    return Source(state, usage, held, lambda: objects.health.reason)


def _key_of(image: Image) -> ObjectKey:
    return ObjectKey(MANIFESTS, Digest.parse(image.digest))
