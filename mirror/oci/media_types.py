"""Media types of manifests, and who accepts which (RFC 9110, 12.5.1).

Knows names and the Accept field.  Must not know what a manifest looks like inside.
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

_MAX_ACCEPT_LENGTH: Final = 4096  # Docker's has 600
_MAX_ACCEPT_ITEMS: Final = 64
_REMEMBERED_ACCEPTS: Final = 256
_ZERO: Final = re.compile(r"0+(?:\.0*)?")

#: What images are made of today; a client that takes all four is given what there is.
CURRENT_TYPES: Final = (OCI_INDEX, DOCKER_LIST, OCI_MANIFEST, DOCKER_MANIFEST)
MANIFEST_TYPES: Final = (*CURRENT_TYPES, OCI_ARTIFACT)

#: What the mirror asks for whatever the client sent.  No schema 1 and no wildcard: registries
#: that still convert would take either as leave to.
ACCEPT_MANIFESTS: Final = ", ".join(MANIFEST_TYPES)


def accepts(accept: str, media_type: str) -> bool:
    """Whether an Accept field covers a media type; an empty one covers everything.

    The most precise pattern decides.  Parameters other than ``q`` are ignored: manifests have none.
    A field of more than 4096 characters or 64 patterns is disregarded (RFC 9110, 12.5.1).
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
    """Whether it is a manifest of Docker's first schema, as a Content-Type may say it."""
    essence = media_type.partition(";")[0].strip().lower()
    return essence in {DOCKER_SCHEMA1, DOCKER_SCHEMA1_SIGNED}


def narrow_accept(accept: str) -> str:
    """What a picky client accepts, in our order; empty for a client that takes them all.

    Also empty for one that takes none of them: it is given the real manifest, for want of
    anything better.
    """
    accepted = [name for name in MANIFEST_TYPES if accepts(accept, name)]
    return "" if set(CURRENT_TYPES) <= set(accepted) else ", ".join(accepted)


@lru_cache(_REMEMBERED_ACCEPTS)
def _parse_accept(accept: str) -> Mapping[str, bool]:
    """Each pattern of an Accept field, and whether it is accepted; empty where all is."""
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
