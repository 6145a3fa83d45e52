"""Docker with the mirror as its proxy: ``daemon.json`` (Engine 23), or a drop-in for systemd."""

from typing import Final

from mirror.clients.docker import DAEMON, daemon_file
from mirror.clients.snippet import File, Mirror, Snippet, copying, is_loopback

_UNIT: Final = "/etc/systemd/system/docker.service.d/mirror.conf"
_SYSTEM_CA: Final = "/usr/local/share/ca-certificates/mirror.crt"
_LOCAL: Final = ("localhost", "127.0.0.1", "::1")


def docker_proxy(mirror: Mirror) -> Snippet:
    """Return ``proxies`` for ``daemon.json``; the URL of ``mirror`` is that of the proxy."""
    proxies = {"https-proxy": mirror.address, "no-proxy": _no_proxy(mirror)}
    how = (
        f"For Docker 23 and later put this into {DAEMON}",
        "(mirror client docker --proxy daemon --write / merges both files),",
        "then: systemctl restart docker    # a reload does not read proxies",
    )
    return _snippet(mirror, daemon_file({"proxies": proxies}), how)


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
    return _snippet(mirror, File(_UNIT, "\n".join(lines) + "\n"), advice)


def _no_proxy(mirror: Mirror) -> str:
    """Return NO_PROXY: this machine, and the mirror itself."""
    return ",".join([*_LOCAL, *([] if is_loopback(mirror.host) else [mirror.host])])


def _snippet(mirror: Mirror, file: File, how: tuple[str, ...]) -> Snippet:
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
