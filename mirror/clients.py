"""What to paste into a client so that it pulls through the mirror.  Pure."""

import ipaddress
import json
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

_HUB: Final = "docker.io"


@dataclass(frozen=True, slots=True)
class Snippet:
    """Configuration to paste (machines may read it), and what a person should know about it."""

    text: str
    advice: tuple[str, ...]


def docker(url: str, default: str, upstreams: tuple[str, ...]) -> Snippet:
    """``/etc/docker/daemon.json`` for dockerd (docs.docker.com, "registry-mirrors")."""
    address = url.rstrip("/")
    daemon: dict[str, object] = {"registry-mirrors": [address]}
    parts = urlsplit(address)
    if parts.scheme == "http" and not _is_loopback(parts.hostname or ""):
        # dockerd speaks plain http to a mirror as given, but a path-prefix pull is no mirror pull.
        daemon["insecure-registries"] = [parts.netloc]
    others = [name for name in upstreams if name != _HUB]
    advice = [
        "Put this into /etc/docker/daemon.json (merge it with what is there),",
        "then: systemctl restart docker",
        "From then on images of Docker Hub come through the mirror, by their usual names.",
    ]
    if default != _HUB:
        advice += [
            f"Docker before 29 does not say that it means Docker Hub, and would get {default}:",
            f"make {_HUB} the default upstream of this mirror if you have such Dockers.",
        ]
    if others:
        advice += [
            "Docker uses registry-mirrors for Docker Hub alone; others by a path:",
            f"  docker pull {parts.netloc}/{others[0]}/IMAGE   ({', '.join(others)})",
        ]
    return Snippet(json.dumps(daemon, indent=2), tuple(advice))


def reachable_url(listen_host: str, port: int, hostname: str) -> str:
    """An address under which others reach a mirror that listens there."""
    host = hostname if listen_host in {"", "0.0.0.0", "::"} else listen_host  # noqa: S104  # compared, not bound
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
