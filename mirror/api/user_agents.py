"""Which program asks, from what it says of itself (User-Agent): a short name for people."""

import re
from typing import Final

_NAMES: Final = {
    "buildah": "Buildah",
    "buildkit": "BuildKit",
    "containers": "Podman",  # names its library alone; the others that use it name themselves
    "cri-o": "CRI-O",
    "docker": "Docker",
    "helm": "Helm",
    "libpod": "Podman",
    "oras": "ORAS",
    "podman": "Podman",
    "skopeo": "Skopeo",
    "trivy": "Trivy",
}
_PRODUCT: Final = re.compile(r"[A-Za-z][\w.+-]{0,23}", re.ASCII)  # RFC 9110, 10.1.5, shorter


def client_type(agent: str) -> str:
    """What people call the program: its first word where nothing better is known, or unknown."""
    product = _PRODUCT.match(agent)
    if product is None:
        return "unknown"
    return _NAMES.get(product[0].lower(), product[0])
