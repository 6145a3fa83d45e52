"""The well-known registries, and the rules between upstreams: one default, no name used twice."""

from collections.abc import Collection, Iterator, Mapping
from types import MappingProxyType
from typing import Any, Final

from mirror.config.model import UpstreamConfig
from mirror.oci.image_name import HUB, HUB_HOSTS

#: Registry name to the content of its table in the configuration.
WELL_KNOWN: Final = MappingProxyType[str, dict[str, Any]](
    {
        HUB: {
            "url": "https://registry-1.docker.io",
            "aliases": list(HUB_HOSTS),
            "library": True,
        },
        "mcr.microsoft.com": {"url": "https://mcr.microsoft.com"},
        "ghcr.io": {"url": "https://ghcr.io"},
        "quay.io": {"url": "https://quay.io"},
        "gcr.io": {"url": "https://gcr.io"},
        "registry.k8s.io": {"url": "https://registry.k8s.io"},
        "public.ecr.aws": {"url": "https://public.ecr.aws"},
        "nvcr.io": {"url": "https://nvcr.io"},
    }
)


def well_known(own: Collection[str]) -> dict[str, dict[str, Any]]:
    """Return the tables for a configuration with upstreams of these names.

    A name of its own is not an alias of a well-known registry.
    """
    tables = {name: dict(table) for name, table in WELL_KNOWN.items()}
    for table in tables.values():
        if "aliases" in table:
            table["aliases"] = [each for each in table["aliases"] if each not in own]
    return tables


Upstreams = Mapping[str, UpstreamConfig]
Place = tuple[str, ...]


def plain_upstreams(upstreams: Upstreams) -> frozenset[str]:
    """Return the registries that are asked under their own names, without TLS."""
    return frozenset(
        name for name, each in upstreams.items() if each.url.rstrip("/") == f"http://{name}"
    )


def with_default(upstreams: Upstreams) -> dict[str, UpstreamConfig]:
    """Return the upstreams, with Docker Hub as the default if the configuration names none."""
    hub = upstreams.get(HUB)
    silent = hub is not None and "default" not in hub.model_fields_set
    if hub is None or not silent or _defaults(upstreams):
        return dict(upstreams)
    return {**upstreams, HUB: hub.model_copy(update={"default": True})}


def disagreements(upstreams: Upstreams, *, whole: bool) -> Iterator[tuple[Place, str]]:
    """Yield the key and the text of each contradiction between upstreams.

    ``whole``: these are all upstreams.  Otherwise a missing default is not a mistake.
    """
    first, *others = _defaults(upstreams) or [""]
    for name in others:
        text = f"found true, which {first} says too, allowed: one default"
        yield ("upstreams", name, "default"), text
    if whole and not first:
        yield ("upstreams",), "found no default, allowed: default = true for one that is enabled"
    names = {name: name for name in _enabled(upstreams)}
    yield from _taken("aliases", upstreams, names)
    yield from _taken("hosts", upstreams, {})
    first, *others = without_host(upstreams) or [""]
    for name in others:
        text = (
            f"found true without hosts, as {first}: the mirror could not tell which of them a "
            "client sends credentials for, allowed: one without hosts (set hosts here: a separate "
            "name of the mirror)"
        )
        yield ("upstreams", name, "client_credentials"), text


def taking_credentials(upstreams: Upstreams) -> list[str]:
    """Return the upstreams to which clients send their own credentials."""
    return [name for name in _enabled(upstreams) if upstreams[name].client_credentials]


def without_host(upstreams: Upstreams) -> list[str]:
    """Return the upstreams that get a client's credentials without a matching Host field."""
    return [name for name in taking_credentials(upstreams) if not upstreams[name].hosts]


def _enabled(upstreams: Upstreams) -> list[str]:
    return [name for name, upstream in upstreams.items() if upstream.enabled]


def _defaults(upstreams: Upstreams) -> list[str]:
    return [name for name in _enabled(upstreams) if upstreams[name].default]


def _taken(key: str, upstreams: Upstreams, owners: dict[str, str]) -> Iterator[tuple[Place, str]]:
    for name in _enabled(upstreams):
        for word in getattr(upstreams[name], key):
            owner = owners.setdefault(word.lower(), name)
            if owner != name:
                yield ("upstreams", name, key), f"found {word!r}, which means {owner} already"
