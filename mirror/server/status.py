"""The content of the pages for people, from ledger, store and configuration."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Final

from yarl import URL

from mirror import __version__, clients
from mirror.clients import Mirror, Snippet
from mirror.clients.snippet import File
from mirror.config.addresses import lookup_outermost
from mirror.config.model import Config
from mirror.http.server_options import Handler
from mirror.http.token import Tokens
from mirror.oci.digest import Digest
from mirror.server.site import Site, last_days
from mirror.stats.report import Image, Replica
from mirror.store.interface import IndexUnavailableError
from mirror.store.local.eviction import Usage
from mirror.store.local.layout import MANIFESTS, ObjectKey
from mirror.store.local.objects import Objects
from mirror.ui.answers import Answers
from mirror.ui.changes import Change, ChangesHandler
from mirror.ui.images import ImagesHandler
from mirror.ui.status import Guide, Source, StatusHandler
from mirror.ui.templates import Pages

_EVERY: Final = "Every registry, by its usual names."
_BY_PROXY: Final = "Docker 23+ with the mirror as its proxy: every registry, pushes and logins too."
_PROXY_OFF: Final = Snippet(
    (File("/etc/mirror/mirror.toml", '[proxy]\nlisten = "0.0.0.0:3128"\n'),),
    (
        "Proxy mode is off on this mirror. To switch it on, put this into the configuration of",
        "the mirror, and restart the mirror: systemctl restart mirror",
        "Then this page shows what the clients need.",
    ),
)
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


@dataclass(frozen=True, slots=True)
class PageRoutes:
    """The handlers of the pages and of their forms, by path."""

    reads: Mapping[str, Handler]
    posts: Mapping[str, Handler]


def page_routes(
    config: Config, site: Site, objects: Objects, tokens: Tokens, changes: Mapping[str, Change]
) -> PageRoutes:
    """The pages for people."""
    default = config.default_upstream()
    names = [default, *(name for name in config.enabled() if name != default)]
    pages = _pages()
    answers = Answers(__version__, pages, tokens)
    guides = _guides(config, tuple(names), default)
    source = _source(site, objects)
    status = StatusHandler(__version__, pages, answers, names, default, source, guides)
    images = ImagesHandler(answers, site.images, site.image)
    forms = ChangesHandler(answers, tokens, changes)
    return PageRoutes(
        {
            "/": status.page,
            "/live": status.live,
            "/clients": status.clients,
            "/images": images.search,
            "/image": images.image,
            "/login": forms.login,
            **{f"/{name}": status.asset for name in status.assets},
        },
        {
            "/login": forms.sign_in,
            "/logout": forms.sign_out,
            **{f"/{name}": forms.change for name in changes},
        },
    )


@cache  # Jinja takes 70 ms to compile the templates, and a reload does not change them
def _pages() -> Pages:
    return Pages()


def _guides(config: Config, upstreams: tuple[str, ...], default: str) -> list[Guide]:
    def of(make: Callable[[Mirror], Snippet]) -> Callable[[str], Snippet]:
        return lambda url: make(Mirror(url, upstreams, default))

    guides = [
        Guide(key, name, command, covers, of(make)) for key, name, command, make, covers in _CLIENTS
    ]
    proxy = lookup_outermost(config.proxy.addresses())

    def by_proxy(url: str) -> Snippet:
        if proxy is None or not proxy.port:
            return _PROXY_OFF
        return of(clients.docker_proxy)(str(URL(url).with_scheme("http").with_port(proxy.port)))

    command = "docker --proxy daemon"
    docker = Guide("docker-proxy", "Proxy mode", command, _BY_PROXY, by_proxy, by_proxy=True)
    return [*guides, docker]


def _source(site: Site, objects: Objects) -> Source:
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

    async def policies() -> Mapping[str, Sequence[object]]:
        try:
            found: Mapping[str, Sequence[object]] = await site.policies({})
        except (OSError, IndexUnavailableError):
            return {"held": (), "blocks": ()}
        return found

    async def replicas() -> Sequence[Replica]:
        try:
            return await site.replicas()
        except (OSError, IndexUnavailableError):
            return ()

    return Source(site.report, usage, held, site.periods, last_days, policies, replicas)


def _key_of(image: Image) -> ObjectKey:
    return ObjectKey(MANIFESTS, Digest.parse(image.digest))
