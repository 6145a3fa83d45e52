"""Docker: ``daemon.json``, the settings of the daemon, and ``hosts.toml`` from Engine 28 on."""

from typing import Any, Final

from mirror.config.fields import masked
from mirror.doctor import hosts
from mirror.doctor.daemon import Daemon, is_insecure
from mirror.doctor.files import Tree, UnusableFileError, strings
from mirror.doctor.inspection import Inspection, Probe, Trust, Way
from mirror.doctor.proxied import goes_direct, lookup_through
from mirror.doctor.report import Finding, note, ok, wrong
from mirror.doctor.target import Likeness, MirrorAddress
from mirror.oci.image_name import HUB

_FILE: Final = "/etc/docker/daemon.json"
_CERTS: Final = "/etc/docker/certs.d"
_WHO: Final = "the Docker daemon"
_RELOAD: Final = "systemctl reload docker"
_RESTART: Final = "systemctl restart docker"


def inspect(tree: Tree, target: MirrorAddress, daemon: Daemon | None) -> Inspection:
    """Inspect Docker, if the machine has it."""
    version = "" if daemon is None else daemon.version
    by_hosts = hosts.inspect(tree, _CERTS, target, "Docker", version)
    if daemon is None and not by_hosts.findings and not tree.exists(_FILE):
        return Inspection()
    inspection = Inspection()
    inspection.findings += _unread_hosts(by_hosts, daemon)
    if not inspection.findings:
        inspection.take(by_hosts)
    try:
        settings = tree.json(_FILE) or {}
    except UnusableFileError as error:
        apply = _RESTART if daemon is None else _RELOAD
        fix = f"fix it, then {apply} (until then Docker does not start again)"
        inspection.findings.append(wrong(_FILE, str(error), fix))
        return inspection
    through = lookup_through(tree, target, settings, daemon)
    if through is not None:
        inspection.through, inspection.pointed = through, {*inspection.pointed, HUB}
    if HUB not in inspection.pointed or settings.get("registry-mirrors"):
        inspection.take(_registry_mirrors(tree, target, settings, daemon))
        inspection.findings += _plain_http(target, settings, daemon)
    if daemon is not None and through is None:
        inspection.findings += _proxies(target, daemon)
    return inspection


def named(tree: Tree) -> list[str]:
    """Return the mirrors in ``daemon.json``."""
    try:
        settings = tree.json(_FILE) or {}
    except UnusableFileError:
        return []
    return strings(settings.get("registry-mirrors"))


def _unread_hosts(by_hosts: Inspection, daemon: Daemon | None) -> list[Finding]:
    if daemon is None or daemon.reads_hosts or not by_hosts.pointed:
        return []
    fix = "use registry-mirrors, or Engine 28 and later with the containerd image store"
    store = "containerd" if daemon.containerd_store else "classic"
    what = f"Docker {daemon.version} with the {store} image store does not read hosts.toml there"
    return [wrong(_CERTS, what, fix)]


def _registry_mirrors(
    tree: Tree, target: MirrorAddress, settings: dict[str, Any], daemon: Daemon | None
) -> Inspection:
    written = settings.get("registry-mirrors", [])
    if not isinstance(written, list) or strings(written) != written:
        fix = f'"registry-mirrors": ["{target.url}"]'
        return Inspection([wrong(_FILE, "registry-mirrors is no list of addresses", fix)])
    findings = _unread(written, daemon)
    effective = list(daemon.mirrors) if daemon and not findings else written
    source = _FILE if effective == written or daemon is None else _WHO
    if not any(target.likeness(url) is Likeness.SAME for url in effective):
        return Inspection([*findings, *_misses(effective, source, target)])
    findings.append(ok(source, f"registry-mirrors names {target.url}"))
    way = Way.NAMESPACE if daemon and daemon.containerd_store else Way.PLAIN
    probe = Probe("Docker", HUB, way, _trust(tree, target, settings))
    return Inspection(findings, [probe], {HUB})


def _unread(written: list[str], daemon: Daemon | None) -> list[Finding]:
    """Check whether the daemon must reload to use its file."""
    unread = [url for url in written if daemon and url.rstrip("/") not in daemon.mirrors]
    if not unread:
        return []
    what = f"does not use the registry mirror {masked(', '.join(unread))} that {_FILE} names"
    return [wrong(_WHO, what, f"{_RELOAD} (until then it does not read the file)")]


def _misses(urls: list[str], source: str, target: MirrorAddress) -> list[Finding]:
    """Report the other addresses in ``registry-mirrors``."""
    fix = f'"registry-mirrors": ["{target.url}"] in {_FILE}, then {_RELOAD}'
    for url in urls:
        if "://" not in url:
            return [wrong(source, f"registry-mirrors has {url} without http:// or https://", fix)]
        if (difference := target.difference(url)) is not None:
            return [wrong(source, f"registry-mirrors has {masked(url)}, {difference}", fix)]
    others = f" but {masked(', '.join(urls))}" if urls else ""
    return [wrong(source, f"registry-mirrors does not name {target.url}{others}", fix)]


def _plain_http(
    target: MirrorAddress, settings: dict[str, Any], daemon: Daemon | None
) -> list[Finding]:
    """Check pulls by path over plain http, for registries other than Docker Hub."""
    if not target.plain or target.local:
        return []
    written = is_insecure(
        tuple(strings(settings.get("insecure-registries"))), target.host, target.netloc
    )
    if daemon is not None and daemon.spares(target.host, target.netloc):
        return [ok(_WHO, f"speaks plain http to {target.netloc}")]
    if written and daemon is None:
        return [ok(_FILE, f"insecure-registries covers {target.netloc}")]
    if written:
        what = f"has not read that {_FILE} lists {target.netloc} in insecure-registries"
        return [wrong(_WHO, what, _RELOAD)]
    what = (
        f"insecure-registries lacks {target.netloc}, so a pull by path fails "
        f"(docker pull {target.netloc}/ghcr.io/...: server gave HTTP response to HTTPS client)"
    )
    fix = f'"insecure-registries": ["{target.netloc}"], then {_RELOAD}'
    return [wrong(_FILE, what, fix)]


def _proxies(target: MirrorAddress, daemon: Daemon) -> list[Finding]:
    proxy = daemon.http_proxy if target.plain else daemon.https_proxy
    if not proxy or goes_direct(daemon.no_proxy, target.host, target.port):
        return []
    variable = "HTTP_PROXY" if target.plain else "HTTPS_PROXY"
    what = f"asks a proxy ({variable}) for the mirror, for NO_PROXY does not name {target.host}"
    fix = (
        f"add {target.host} to NO_PROXY of the daemon (systemctl edit docker, or proxies in "
        f"{_FILE}), then {_RESTART}"
    )
    return [wrong(_WHO, what, fix)]


def _trust(tree: Tree, target: MirrorAddress, settings: dict[str, Any]) -> Trust:
    directory = f"{_CERTS}/{target.netloc}"
    files = tuple(
        str(tree.at(f"{directory}/{name}"))
        for name in tree.names(directory)
        if name.endswith(".crt")
    )
    insecure = tuple(strings(settings.get("insecure-registries")))
    return Trust(
        files,
        insecure=is_insecure(insecure, target.host, target.netloc),
        fix=f"copy the CA of the mirror to {directory}/ca.crt",
    )


def silent(reason: str) -> Finding:
    """Return the finding for a daemon that does not answer."""
    return note(_WHO, f"cannot be asked ({reason})", "run as root, or see whether it is up")
