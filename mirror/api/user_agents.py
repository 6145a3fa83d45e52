"""The name of a client program, from its User-Agent field."""

import re
from typing import Final

_NAMES: Final = {
    "buildah": "Buildah",
    "buildkit": "BuildKit",
    "containers": "Podman",  # sends its library's name; other users of it send their own names
    "cri-o": "CRI-O",
    "docker": "Docker",
    "helm": "Helm",
    "libpod": "Podman",
    "oras": "ORAS",
    "podman": "Podman",
    "skopeo": "Skopeo",
    "trivy": "Trivy",
}
_PRODUCT: Final = re.compile(r"[A-Za-z][\w.+-]{0,23}", re.ASCII)  # RFC 9110, 10.1.5, but bounded


def client_type(agent: str) -> str:
    """Return the program's usual name, else the first product in ``agent``, else ``unknown``."""
    product = _PRODUCT.match(agent)
    if product is None:
        return "unknown"
    return _NAMES.get(product[0].lower(), product[0])
