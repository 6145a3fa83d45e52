"""Examines the files of clients, the settings of the Docker daemon, the answers of the mirror."""

from pathlib import Path

from mirror.doctor import buildkit, containerd, docker, hosts, k3s, podman
from mirror.doctor.docker import Daemon, SilentDaemonError, ask, probe_proxy
from mirror.doctor.files import Tree
from mirror.doctor.probes import probe_all
from mirror.doctor.report import Finding, Report, is_wrong, note, wrong
from mirror.doctor.target import Likeness, MirrorAddress


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
    inspection = docker.inspect(tree, target, daemon)
    inspection.take(containerd.inspect(tree, target, containerd_version))
    for client in (k3s, podman, buildkit):
        inspection.take(client.inspect(tree, target))
    findings += inspection.findings
    if not inspection.pointed and not any(map(is_wrong, inspection.findings)):
        what = f"no Docker, containerd, k3s, Podman or BuildKit is pointed at {target.url}"
        findings.append(wrong("this machine", what, f"mirror client docker --url {target.url}"))
    if inspection.through is not None:
        findings.append(await probe_proxy(inspection.through))
    if inspection.probes or inspection.through is None:
        findings += await probe_all(target, inspection.probes)
    return Report(target.url, tuple(findings))


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
