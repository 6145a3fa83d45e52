"""Podman, Buildah, Skopeo and CRI-O: ``registries.conf`` (containers-registries.conf(5))."""

from typing import Final

from mirror.clients.snippet import Mirror, Snippet, commented, copying, quoted

# A separate file: it does not have to be merged with an existing one.
_PATH: Final = "/etc/containers/registries.conf.d/mirror.conf"
_CERTS: Final = "/etc/containers/certs.d"


def podman(mirror: Mirror) -> Snippet:
    """Return a table per registry, with its name as path: not every client sends ``?ns=``."""
    lines: list[str] = []
    for name in mirror.upstreams:
        lines += ["[[registry]]", f"prefix = {quoted(name)}", f"location = {quoted(name)}", ""]
        lines += ["[[registry.mirror]]", f"location = {quoted(f'{mirror.netloc}/{name}')}"]
        lines += ["insecure = true"] if mirror.plain else []
        lines += ['pull-from-mirror = "all"', ""]
    ca_copy = f"{_CERTS}/{mirror.netloc}/ca.crt" if mirror.ca_file else ""
    advice = (
        f"Put this into {_PATH}",
        "(without root: ~/.config/containers/registries.conf.d/mirror.conf).",
        *copying(mirror, ca_copy),
        "Podman, Buildah and Skopeo read it at every start; CRI-O after: systemctl reload crio",
        "A name without registry is one of Docker Hub only where registries.conf says so:",
        '  unqualified-search-registries = ["docker.io"]',
    )
    return Snippet((commented(_PATH, lines[:-1]),), advice, ca_copy)
