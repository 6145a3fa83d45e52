"""Examines the files of clients, the settings of the Docker daemon, the answers of the mirror."""

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from mirror.doctor import buildkit, containerd, docker, hosts, k3s, podman
from mirror.doctor.daemon import Daemon, SilentDaemonError, ask
from mirror.doctor.files import Tree
from mirror.doctor.probes import probe_all
from mirror.doctor.proxied import Through, probe_proxy
from mirror.doctor.report import Finding, Report, is_wrong, note, wrong
from mirror.doctor.target import Likeness, MirrorAddress


class Way(StrEnum):
    """How a client names the registry in a request to the mirror."""

    PLAIN = "by its plain name"
    NAMESPACE = "by ns="
    PATH = "by path"


@dataclass(frozen=True, slots=True)
class Trust:
    """The CAs that a client trusts, and how to add one (``fix``)."""

    ca_files: tuple[str, ...] = ()
    insecure: bool = False
    fix: str = "make its CA known to the system: update-ca-certificates"


@dataclass(frozen=True, slots=True)
class Probe:
    """A request that a client would send to the mirror."""

    client: str
    registry: str
    way: Way
    trust: Trust


@dataclass(slots=True)
class Inspection:
    """The findings for a client; ``pointed`` are the registries that it pulls from the mirror.

    ``through``: the mirror as the proxy of the client, None if it is not.
    """

    findings: list[Finding] = field(default_factory=list)
    probes: list[Probe] = field(default_factory=list)
    pointed: set[str] = field(default_factory=set)
    through: Through | None = None

    def take(self, other: "Inspection") -> None:
        """Add the results of another inspection."""
        self.findings += other.findings
        self.probes += other.probes
        self.pointed |= other.pointed
        self.through = self.through or other.through


async def examine(
    root: Path, url: str | None, own: str, home: str = "/root", containerd_version: str = ""
) -> Report:
    """Examine the clients of a machine and the mirror that they should use.

    Args:
        root: the directory with the files of the machine.
        url: the mirror; None: the one in the files of the clients.
        own: the mirror if neither ``url`` nor a file names one.
        home: the home directory of a user whose files are examined too.
        containerd_version: the version of the machine's containerd, empty if unknown.
    """
    tree = Tree(root, home)
    findings: list[Finding] = []
    target = MirrorAddress(url or _guessed(tree, own))
    if url is None:
        findings.append(note(target.url, "is taken for the mirror; name another with --url"))
    daemon: Daemon | None = None
    try:
        daemon = await ask(tree)
    except SilentDaemonError as error:
        findings.append(docker.silent(str(error)))
    inspection = _inspected(tree, target, daemon, containerd_version)
    findings += inspection.findings
    if not inspection.pointed and not any(map(is_wrong, inspection.findings)):
        findings.append(_unused(target))
    if inspection.through is not None:
        findings.append(await probe_proxy(inspection.through))
    if inspection.probes or inspection.through is None:
        findings += await probe_all(target, inspection.probes)
    return Report(target.url, tuple(findings))


def _inspected(
    tree: Tree, target: MirrorAddress, daemon: Daemon | None, containerd_version: str
) -> Inspection:
    inspection = docker.inspect(tree, target, daemon)
    inspection.take(containerd.inspect(tree, target, containerd_version))
    for client in (k3s, podman, buildkit):
        inspection.take(client.inspect(tree, target))
    return inspection


def _guessed(tree: Tree, own: str) -> str:
    """Return the mirror in the files of the clients: ``own`` if it is there, else the first."""
    named = docker.named(tree)
    for directory in ("/etc/docker/certs.d", containerd.CERTS):
        named += hosts.named(tree, directory)
    named += k3s.named(tree) + podman.named(tree)
    addresses = [url.rstrip("/") for url in named if url.startswith(("http://", "https://"))]
    if not addresses or any(MirrorAddress(own).likeness(url) is Likeness.SAME for url in addresses):
        return own
    return addresses[0]


def _unused(target: MirrorAddress) -> Finding:
    what = f"no Docker, containerd, k3s, Podman or BuildKit is pointed at {target.url}"
    return wrong("this machine", what, f"mirror client docker --url {target.url}")
