"""How a machine comes to trust the CA of proxy mode.  Pure text."""


def trusting() -> tuple[str, ...]:
    """What to do with what ``mirror ca`` prints, for the system, dockerd and containerd."""
    return (
        "The CA of this mirror, for machines whose HTTPS_PROXY it is, and no others: whoever has",
        "its key (which stays with the mirror) can pass for any server there.",
        "Debian, Ubuntu: mirror ca > /usr/local/share/ca-certificates/mirror.crt",
        "                update-ca-certificates",
        "Fedora, RHEL:   mirror ca > /etc/pki/ca-trust/source/anchors/mirror.crt",
        "                update-ca-trust",
        "Docker, containerd, CRI-O and Podman go by the system's; restart the daemon afterwards:",
        "  systemctl restart docker      # or containerd, crio",
        "Docker alone, without the system's: a file per registry, read at every pull:",
        "  mirror ca > /etc/docker/certs.d/mcr.microsoft.com/ca.crt",
        "(Docker Hub is not covered by such a file: for it Docker goes by the system's.)",
        "Then point the daemon at the proxy:",
        "  mirror client docker --proxy daemon     # daemon.json, Docker 23 and later",
        "  mirror client docker --proxy systemd    # any Docker, containerd too",
    )
