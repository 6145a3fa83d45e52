"""k3s and RKE2: ``registries.yaml``, from which they generate containerd's ``hosts.toml``.

containerd then sends ``?ns=``, so that no rewrite and no path are needed.
"""

from typing import Final

from mirror.clients.snippet import Mirror, Snippet, commented, quoted

_PATH: Final = "/etc/rancher/k3s/registries.yaml"


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
