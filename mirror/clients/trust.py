"""Instructions to make a machine trust the CA of proxy mode."""


def trusting() -> tuple[str, ...]:
    """Return where to put the output of ``mirror ca``, for the system, dockerd and containerd."""
    return (
        "The CA of this mirror, only for machines that use the mirror as HTTPS_PROXY: with its key",
        "(which never leaves the mirror) one can impersonate any server to these machines.",
        "Debian, Ubuntu: mirror ca > /usr/local/share/ca-certificates/mirror.crt",
        "                update-ca-certificates",
        "Fedora, RHEL:   mirror ca > /etc/pki/ca-trust/source/anchors/mirror.crt",
        "                update-ca-trust",
        "Docker, containerd, CRI-O and Podman use the system's CAs; restart the daemon afterwards:",
        "  systemctl restart docker      # or containerd, crio",
        "Docker alone, without the system's: a file per registry, read at every pull:",
        "  mirror ca > /etc/docker/certs.d/mcr.microsoft.com/ca.crt",
        "(Such a file does not cover Docker Hub: for it Docker uses the system's.)",
        "Then point the daemon at the proxy:",
        "  mirror client docker --proxy daemon     # daemon.json, Docker 23 and later",
        "  mirror client docker --proxy systemd    # any Docker, containerd too",
    )
