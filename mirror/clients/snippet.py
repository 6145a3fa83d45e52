"""Values for the configuration of a client: the mirror's address, files and advice."""

import ipaddress
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from mirror.oci.image_name import HUB

_CONTAINER_ID: Final = re.compile(r"[0-9a-f]{12}|[0-9a-f]{64}", re.ASCII)


@dataclass(frozen=True, slots=True)
class ClientUrl:
    """The URL of the mirror that clients use."""

    url: str

    @property
    def netloc(self) -> str:
        """``host[:port]``, as written before an image."""
        return urlsplit(self.url).netloc

    @property
    def host(self) -> str:
        """The host without port and brackets."""
        return urlsplit(self.url).hostname or ""

    @property
    def plain(self) -> bool:
        """Whether clients reach the mirror without TLS."""
        return urlsplit(self.url).scheme == "http"


def reachable_url(listen_host: str, port: int, hostname: str, *, tls: bool = False) -> str:
    """Return the URL at which other machines reach a mirror that listens at ``listen_host``.

    The host name of a container is its ID, which no other machine can resolve.
    """
    if _CONTAINER_ID.fullmatch(hostname):
        hostname = "localhost"
    host = hostname if listen_host in {"", "0.0.0.0", "::"} else listen_host  # noqa: S104  # compared, not bound
    scheme = "https" if tls else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def is_loopback(host: str) -> bool:
    """Whether a host is this machine: clients use plain http for it without configuration."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@dataclass(frozen=True, slots=True)
class Mirror(ClientUrl):
    """The mirror as its clients see it.

    ``upstreams`` are the names of its registries, and ``default`` is the one for image names
    without a registry; ``ca_file`` is the path, on the client's machine, of the CA that the client
    must trust, empty if it needs none.  ``referrers``: the client knows that capability of a host.
    ``plain_upstreams`` are the registries without TLS.
    """

    upstreams: tuple[str, ...]
    default: str = HUB
    ca_file: str = ""
    referrers: bool = False
    plain_upstreams: frozenset[str] = frozenset()

    @property
    def address(self) -> str:
        """The url without a slash at its end."""
        return self.url.rstrip("/")


@dataclass(frozen=True, slots=True)
class File:
    """A complete file of a client's configuration.

    ``merged`` returns a file that exists with the settings of this one, and raises ValueError with
    the reason if the existing file is unusable; None: such a file cannot be merged.
    """

    path: str
    text: str
    merged: Callable[[str], str] | None = None


@dataclass(frozen=True, slots=True)
class Snippet:
    """Files to install, advice about them, and the path where the CA must be copied to."""

    files: tuple[File, ...]
    advice: tuple[str, ...]
    ca_copy: str = ""

    @property
    def text(self) -> str:
        """All files in one text; each begins with its path if there can be several."""
        return "\n".join(file.text for file in self.files)


def commented(path: str, lines: list[str]) -> File:
    """Return a file whose first line is a comment with its path."""
    return File(path, "\n".join([f"# {path}", *lines]) + "\n")


def quoted(text: str) -> str:
    """Return a text as a string of TOML or YAML; both accept a JSON string."""
    return json.dumps(text, ensure_ascii=False)


def copying(mirror: Mirror, path: str) -> list[str]:
    """Return the command that copies the CA to the path where the client looks for it."""
    return [f"  install -D -m 644 {mirror.ca_file} {path}"] if mirror.ca_file else []


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
