"""The public registries that are configured by default."""

from types import MappingProxyType
from typing import Any, Final

from mirror.oci.image_name import HUB

DEFAULT_UPSTREAM: Final = HUB

#: Registry name to the content of its table in the configuration.
WELL_KNOWN: Final = MappingProxyType[str, dict[str, Any]](
    {
        DEFAULT_UPSTREAM: {
            "url": "https://registry-1.docker.io",
            "aliases": ["index.docker.io", "registry-1.docker.io"],
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
