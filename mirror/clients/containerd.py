"""containerd, for Kubernetes and nerdctl: ``hosts.toml``."""

from typing import Final

from mirror.clients.hosts import about_referrers, hosts_files
from mirror.clients.snippet import Mirror, Snippet

_CERTS: Final = "/etc/containerd/certs.d"


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
