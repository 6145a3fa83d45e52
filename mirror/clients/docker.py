"""Docker: ``daemon.json`` for the classic image store, ``hosts.toml`` for containerd's.

With the mirror as its proxy: ``daemon.json`` (Engine 23), or a drop-in for systemd.
"""

import json
from collections.abc import Mapping
from functools import partial
from typing import Any, Final

from mirror.clients.containerd import about_referrers, hosts_files
from mirror.clients.snippet import File, Mirror, Snippet, copying, is_loopback
from mirror.oci.image_name import HUB

_DAEMON: Final = "/etc/docker/daemon.json"
_CERTS: Final = "/etc/docker/certs.d"
_UNIT: Final = "/etc/systemd/system/docker.service.d/mirror.conf"
_SYSTEM_CA: Final = "/usr/local/share/ca-certificates/mirror.crt"
_LOCAL: Final = ("localhost", "127.0.0.1", "::1")
_TYPES: Final[Mapping[type, str]] = {list: "array", dict: "object", str: "string"}


def docker(mirror: Mirror) -> Snippet:
    """Return ``registry-mirrors``, which every Docker supports, but only for Docker Hub."""
    daemon: dict[str, object] = {"registry-mirrors": [mirror.address]}
    if mirror.plain and not is_loopback(mirror.host):
        # dockerd uses plain http for a mirror with that scheme, but not for pulls with a path.
        daemon["insecure-registries"] = [mirror.netloc]
    ca_copy = f"{_CERTS}/{mirror.netloc}/ca.crt" if mirror.ca_file else ""
    advice = [
        f"Put this into {_DAEMON} (mirror client docker --write / merges both files),",
        *copying(mirror, ca_copy),
        "then: systemctl reload docker",
        "From then on images of Docker Hub come through the mirror, by their usual names.",
        *_about_default(mirror),
        *_about_others(mirror),
    ]
    return Snippet((_daemon_file(daemon),), tuple(advice), ca_copy)


def _daemon_file(settings: Mapping[str, Any]) -> File:
    return File(_DAEMON, _rendered(settings), partial(_merged, settings))


def _merged(settings: Mapping[str, Any], text: str) -> str:
    """Return a ``daemon.json`` with more settings; unchanged if it has them.

    Raises:
        ValueError: it is not a JSON object, or one of the settings has another type there.
    """
    present = json.loads(text) if text.strip() else {}
    if not isinstance(present, dict):
        raise ValueError("it holds no JSON object")
    after = _with(present, settings)
    return text if after == present else _rendered(after)


def _with(present: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    after = dict(present)
    for key, value in settings.items():
        former = present.get(key, type(value)())
        if not isinstance(former, type(value)):
            raise ValueError(f"{key} is not a JSON {_TYPES[type(value)]}")
        if isinstance(value, list):  # Docker asks the first mirror first
            after[key] = [*value, *(each for each in former if each not in value)]
            if all(each in former for each in value):
                after[key] = former
        elif isinstance(value, dict):
            after[key] = _with(former, value)
        elif key == "no-proxy":
            hosts = [*former.split(","), *value.split(",")]
            after[key] = ",".join(dict.fromkeys(filter(None, hosts)))
        else:
            after[key] = value
    return after


def _rendered(settings: Mapping[str, Any]) -> str:
    return json.dumps(settings, indent=2, ensure_ascii=False) + "\n"


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


def docker_proxy(mirror: Mirror) -> Snippet:
    """Return ``proxies`` for ``daemon.json``; the URL of ``mirror`` is that of the proxy."""
    proxies = {"https-proxy": mirror.address, "no-proxy": _no_proxy(mirror)}
    how = (
        f"For Docker 23 and later put this into {_DAEMON}",
        "(mirror client docker --proxy daemon --write / merges both files),",
        "then: systemctl restart docker    # a reload does not read proxies",
    )
    return _proxy_snippet(mirror, _daemon_file({"proxies": proxies}), how)


def docker_proxy_unit(mirror: Mirror) -> Snippet:
    """Return a drop-in for systemd, which works with every Docker."""
    lines = (
        "[Service]",
        f'Environment="HTTPS_PROXY={mirror.address}"',
        f'Environment="NO_PROXY={_no_proxy(mirror)}"',
    )
    advice = (
        f"Put this into {_UNIT}",
        "(containerd: /etc/systemd/system/containerd.service.d/mirror.conf),",
        "then: systemctl daemon-reload && systemctl restart docker",
    )
    return _proxy_snippet(mirror, File(_UNIT, "\n".join(lines) + "\n"), advice)


def _no_proxy(mirror: Mirror) -> str:
    """Return NO_PROXY: this machine, and the mirror itself."""
    return ",".join([*_LOCAL, *([] if is_loopback(mirror.host) else [mirror.host])])


def _proxy_snippet(mirror: Mirror, file: File, how: tuple[str, ...]) -> Snippet:
    ca_copy = _SYSTEM_CA if mirror.ca_file else ""
    trust = (
        [*copying(mirror, ca_copy), "  update-ca-certificates"]
        if mirror.ca_file
        else ["`mirror ca`, on the machine of the mirror, prints it and says where it goes."]
    )
    advice = (
        "First let this machine trust the CA of the mirror:",
        *trust,
        *how,
        "From then on images of all these registries come through it, by their usual names:",
        f"  {', '.join(mirror.upstreams)}",
        "Pushes and logins go to the registries as before, through the mirror; registry-mirrors is",
        "not needed. For registries over plain http set the proxy for http, too; nothing else may",
        "go over plain http then.",
    )
    return Snippet((file,), advice, ca_copy)
