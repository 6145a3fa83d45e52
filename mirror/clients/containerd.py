"""containerd, for Kubernetes, nerdctl, k3s and RKE2.

``hosts.toml`` is one file per registry, also for Docker with containerd's store; k3s and RKE2
generate theirs from ``registries.yaml``.
"""

from typing import Final

from mirror.clients.snippet import File, Mirror, Snippet, commented, is_loopback, quoted
from mirror.oci.image_name import HUB

_CERTS: Final = "/etc/containerd/certs.d"
_PATH: Final = "/etc/rancher/k3s/registries.yaml"


def hosts_files(mirror: Mirror, directory: str) -> tuple[File, ...]:
    """Return a ``hosts.toml`` below ``directory`` for every upstream."""
    return tuple(
        commented(f"{directory}/{name}/hosts.toml", _lines(mirror, name))
        for name in mirror.upstreams
    )


def about_referrers(mirror: Mirror, newer: str, older: str) -> tuple[str, ...]:
    """Return advice about the capability ``referrers``, which ``older`` clients reject."""
    if mirror.referrers:
        return (f'Only for {newer} and later: {older} rejects a file with "referrers".',)
    return (
        f"{newer} and later looks for signatures and attestations at the registry itself with",
        f'this file; for it, add --referrers. {older} rejects a file with "referrers".',
    )


def _lines(mirror: Mirror, registry: str) -> list[str]:
    lines = [*_server(mirror, registry), f"[host.{quoted(mirror.address)}]"]
    capabilities = ["pull", "resolve", *(["referrers"] if mirror.referrers else [])]
    lines.append(f"  capabilities = [{', '.join(map(quoted, capabilities))}]")
    # Without dial_timeout an unreachable mirror costs 30 s per blob.
    lines.append('  dial_timeout = "3s"')
    if mirror.ca_file:
        lines.append(f"  ca = {quoted(mirror.ca_file)}")
    return lines


def _server(mirror: Mirror, registry: str) -> list[str]:
    """Return the server to ask if the mirror cannot answer."""
    if registry == HUB:
        return ['server = "https://registry-1.docker.io"', ""]
    if is_loopback(registry.partition(":")[0]):
        return []  # the client itself knows whether to use http
    scheme = "http" if registry in mirror.plain_upstreams else "https"
    return [f"server = {quoted(f'{scheme}://{registry}')}", ""]


def containerd(mirror: Mirror) -> Snippet:
    """Return a ``hosts.toml`` per registry, and how to make containerd read them."""
    advice = (
        f"A file per registry below {_CERTS}; read at every pull, without restart.",
        "nerdctl finds them by itself, ctr with: ctr images pull --hosts-dir " + _CERTS,
        "Kubernetes (CRI) finds them where /etc/containerd/config.toml says so; containerd 1.x:",
        "  version = 2",
        '  [plugins."io.containerd.grpc.v1.cri".registry]',
        f'    config_path = "{_CERTS}"',
        "and containerd 2.x (one directory: with several, some versions find none of them):",
        "  version = 3",
        "  [plugins.'io.containerd.cri.v1.images'.registry]",
        f'    config_path = "{_CERTS}"',
        "Once, after that: systemctl restart containerd",
        *about_referrers(mirror, "containerd 2.2", "containerd 2.1"),
    )
    return Snippet(hosts_files(mirror, _CERTS), advice)


def k3s(mirror: Mirror) -> Snippet:
    """Return ``registries.yaml`` for every node."""
    lines = ["mirrors:"]
    for name in mirror.upstreams:
        lines += [f"  {quoted(name)}:", "    endpoint:", f"      - {quoted(mirror.address)}"]
    if mirror.ca_file:
        lines += ["configs:", f"  {quoted(mirror.netloc)}:", "    tls:"]
        lines.append(f"      ca_file: {quoted(mirror.ca_file)}")
    advice = (
        f"Put this into {_PATH} of every node, servers and agents",
        "(RKE2: /etc/rancher/rke2/registries.yaml), merged with what is there,",
        "then: systemctl restart k3s    # on agents k3s-agent",
        "A registry is still asked itself where the mirror cannot answer, unless k3s runs with",
        "--disable-default-registry-endpoint.",
    )
    return Snippet((commented(_PATH, lines),), advice)
