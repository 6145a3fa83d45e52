"""Media types of manifests, and the Accept field (RFC 9110, 12.5.1).

Knows names and the Accept field.  Must not know the content of a manifest.
"""

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Final

DOCKER_SCHEMA1: Final = "application/vnd.docker.distribution.manifest.v1+json"
DOCKER_SCHEMA1_SIGNED: Final = "application/vnd.docker.distribution.manifest.v1+prettyjws"
DOCKER_MANIFEST: Final = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST: Final = "application/vnd.docker.distribution.manifest.list.v2+json"
OCI_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX: Final = "application/vnd.oci.image.index.v1+json"
OCI_ARTIFACT: Final = "application/vnd.oci.artifact.manifest.v1+json"

_MAX_ACCEPT_LENGTH: Final = 4096  # Docker's field has 600 characters
_MAX_ACCEPT_ITEMS: Final = 64
_REMEMBERED_ACCEPTS: Final = 256
_ZERO: Final = re.compile(r"0+(?:\.0*)?")

INDEX_TYPES: Final = (OCI_INDEX, DOCKER_LIST)
#: The current types of images; a client that accepts all four gets any manifest.
CURRENT_TYPES: Final = (OCI_INDEX, DOCKER_LIST, OCI_MANIFEST, DOCKER_MANIFEST)
MANIFEST_TYPES: Final = (*CURRENT_TYPES, OCI_ARTIFACT)

#: The Accept field of the mirror, independent of the client.  It has no schema 1 and no wildcard:
#: either would let a registry that still converts manifests send a converted one.
ACCEPT_MANIFESTS: Final = ", ".join(MANIFEST_TYPES)


def accepts(accept: str, media_type: str) -> bool:
    """Whether an Accept field accepts a media type; an empty field accepts everything.

    The most precise pattern decides.  Parameters other than ``q`` are ignored: manifests have none.
    A field of more than 4096 characters or 64 patterns is ignored (RFC 9110, 12.5.1).
    """
    if len(accept) > _MAX_ACCEPT_LENGTH:
        return True
    patterns = _parse_accept(accept)
    wanted = media_type.lower()
    for pattern in (wanted, wanted.partition("/")[0] + "/*", "*/*"):
        if pattern in patterns:
            return patterns[pattern]
    return not patterns


def is_schema1(media_type: str) -> bool:
    """Whether a Content-Type is that of a manifest of Docker's schema 1."""
    essence = media_type.partition(";")[0].strip().lower()
    return essence in {DOCKER_SCHEMA1, DOCKER_SCHEMA1_SIGNED}


def narrow_accept(accept: str) -> str:
    """Return the types that a client accepts, in a fixed order; empty if it accepts all four.

    It is also empty for a client that accepts no manifest type: it gets the original manifest.
    """
    accepted = [name for name in MANIFEST_TYPES if accepts(accept, name)]
    return "" if set(CURRENT_TYPES) <= set(accepted) else ", ".join(accepted)


@lru_cache(_REMEMBERED_ACCEPTS)
def _parse_accept(accept: str) -> Mapping[str, bool]:
    """Return whether each pattern is accepted; empty if everything is accepted."""
    patterns: dict[str, bool] = {}
    items = [item for item in accept.lower().split(",") if item.strip(" \t")]
    if len(items) > _MAX_ACCEPT_ITEMS:
        return {}
    for item in items:
        name, *parameters = (part.strip() for part in item.split(";"))
        patterns[name] = patterns.get(name, False) or not _refused(parameters)
    return patterns


def _refused(parameters: list[str]) -> bool:
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            return _ZERO.fullmatch(value.strip()) is not None
    return False
