"""Docker: ``daemon.json`` for the classic image store, ``hosts.toml`` for containerd's."""

import json
from typing import Final

from mirror.clients.containerd import about_referrers, hosts_files
from mirror.clients.snippet import File, Mirror, Snippet, copying, is_loopback
from mirror.oci.image_name import HUB

_DAEMON: Final = "/etc/docker/daemon.json"
_CERTS: Final = "/etc/docker/certs.d"


def docker(mirror: Mirror) -> Snippet:
    """Return ``registry-mirrors``, which every Docker supports, but only for Docker Hub."""
    daemon: dict[str, object] = {"registry-mirrors": [mirror.address]}
    if mirror.plain and not is_loopback(mirror.host):
        # dockerd uses plain http for a mirror with that scheme, but not for pulls with a path.
        daemon["insecure-registries"] = [mirror.netloc]
    ca_copy = f"{_CERTS}/{mirror.netloc}/ca.crt" if mirror.ca_file else ""
    advice = [
        f"Put this into {_DAEMON} (merge it with what is there),",
        *copying(mirror, ca_copy),
        "then: systemctl restart docker",
        "From then on images of Docker Hub come through the mirror, by their usual names.",
        *_about_default(mirror),
        *_about_others(mirror),
    ]
    return Snippet((File(_DAEMON, json.dumps(daemon, indent=2) + "\n"),), tuple(advice), ca_copy)


def docker_hosts(mirror: Mirror) -> Snippet:
    """Return a ``hosts.toml`` for every registry; Docker reads them from Engine 28 on."""
    advice = (
        "For Docker Engine 28 and later with the containerd image store: a file per registry",
        f"below {_CERTS}, read without a restart.",
        "From then on images of all these registries come through the mirror, by their usual",
        "names, and daemon.json needs no registry-mirrors.",
        "Whether Docker uses that store (new installations of Engine 29 do):",
        "  docker info -f '{{.DriverStatus}}'    # must name io.containerd.snapshotter.v1",
        'Where it does not: {"features": {"containerd-snapshotter": true}} in daemon.json,',
        "and a restart; images are pulled anew then.",
        *about_referrers(mirror, "Docker 29.1", "Docker 28"),
    )
    return Snippet(hosts_files(mirror, _CERTS), advice)


def _about_default(mirror: Mirror) -> list[str]:
    if mirror.default == HUB:
        return []
    return [
        f"Docker before 29 does not say that it means Docker Hub, and would get {mirror.default}:",
        f"make {HUB} the default upstream of this mirror if you have such Dockers.",
    ]


def _about_others(mirror: Mirror) -> list[str]:
    others = [name for name in mirror.upstreams if name != HUB]
    if not others:
        return []
    return [
        "Docker uses registry-mirrors for Docker Hub alone; others by a path:",
        f"  docker pull {mirror.netloc}/{others[0]}/IMAGE   ({', '.join(others)})",
        "or by their usual names from Engine 28 on, with the containerd image store:",
        "  mirror client docker --store containerd",
    ]
