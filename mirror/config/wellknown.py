"""The public registries that are configured by default."""

from collections.abc import Collection
from types import MappingProxyType
from typing import Any, Final

from mirror.oci.image_name import HUB, HUB_HOSTS

DEFAULT_UPSTREAM: Final = HUB

#: Registry name to the content of its table in the configuration.
WELL_KNOWN: Final = MappingProxyType[str, dict[str, Any]](
    {
        DEFAULT_UPSTREAM: {
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
