"""The content of the pages for people, from ledger, store and configuration."""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final, TypeVar

from yarl import URL

from mirror import clients
from mirror.clients import Mirror, Snippet
from mirror.clients.snippet import File
from mirror.config.addresses import lookup_outermost
from mirror.config.model import Config
from mirror.config.upstreams import plain_upstreams
from mirror.http.server_options import Handler
from mirror.http.token import Tokens
from mirror.oci.digest import Digest
from mirror.server.site import Site
from mirror.stats.report import Image
from mirror.store.interface import IndexUnavailableError
from mirror.store.local.layout import MANIFESTS, ObjectKey
from mirror.store.local.objects import Objects
from mirror.ui.images import Change, ChangesHandler, ImagesHandler
from mirror.ui.pages import ASSETS, Pages
from mirror.ui.status import Guide, Source, StatusHandler

T = TypeVar("T")

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


def page_routes(
    config: Config, site: Site, objects: Objects, tokens: Tokens, changes: Mapping[str, Change]
) -> tuple[dict[str, Handler], dict[str, Handler]]:
    """The handlers of the pages for people, and of their forms, by path."""
    default = config.default_upstream()
    names = [default, *(name for name in config.enabled() if name != default)]
    pages = Pages(tokens)
    guides = _guides(config, tuple(names), default)
    source = _source(site, objects)
    status = StatusHandler(pages, names, default, source, guides)
    images = ImagesHandler(pages, site.images, site.image)
    forms = ChangesHandler(pages, tokens, changes)
    return (
        {
            "/": status.page,
            "/live": status.live,
            "/clients": status.clients,
            "/images": images.search,
            "/image": images.image,
            "/login": forms.login,
            **{f"/{name}": status.asset for name in ASSETS},
        },
        {
            "/login": forms.sign_in,
            "/logout": forms.sign_out,
            **{f"/{name}": forms.change for name in changes},
        },
    )


def _guides(config: Config, upstreams: tuple[str, ...], default: str) -> list[Guide]:
    plain = plain_upstreams(config.enabled())

    def of(make: Callable[[Mirror], Snippet]) -> Callable[[str], Snippet]:
        return lambda url: make(Mirror(url, upstreams, default, plain_upstreams=plain))

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
    async def held(images: Sequence[Image]) -> Sequence[Image]:
        keys = {image: _key_of(image) for image in images if image.digest}
        try:
            there = await objects.held(keys.values())
        except IndexUnavailableError:
            return ()
        return [image for image, key in keys.items() if key in there]

    return Source(
        site.report,
        lambda: _or(None, objects.usage()),
        held,
        site.periods,
        lambda: _or({"held": (), "blocks": ()}, site.policies({})),
        lambda: _or((), site.replicas()),
    )


async def _or(otherwise: T, asked: Awaitable[T]) -> T:
    """The answer; ``otherwise`` while the cache cannot be read."""
    try:
        return await asked
    except (OSError, IndexUnavailableError):
        return otherwise


def _key_of(image: Image) -> ObjectKey:
    return ObjectKey(MANIFESTS, Digest.parse(image.digest))
