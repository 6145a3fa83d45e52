"""Docker: ``daemon.json``, the settings of the running daemon, the mirror as its HTTPS proxy.

From Engine 28 on, Docker reads ``hosts.toml`` too.  The settings are from ``GET /info`` (Docker
Engine API).
"""

import ipaddress
import json
import re
import ssl
from dataclasses import dataclass
from typing import Any, Final

import aiohttp

from mirror.clients import is_loopback
from mirror.config.fields import masked
from mirror.doctor import hosts
from mirror.doctor.files import Tree, UnusableFileError, strings, table
from mirror.doctor.report import Finding, Inspection, Probe, Through, Trust, Way, note, ok, wrong
from mirror.doctor.target import Likeness, MirrorAddress
from mirror.oci.image_name import HUB
from mirror.upstream.proxies import InvalidProxyError, NoProxy, parse_proxy
from mirror.upstream.sessions import read_up_to

SOCKETS: Final = ("/run/docker.sock", "/var/run/docker.sock")
_SECONDS: Final = 10
_MOST_BYTES: Final = 16 * 1024 * 1024
_CONTAINERD_STORE: Final = "io.containerd.snapshotter.v1"
_HOSTS_SINCE: Final = 28

_FILE: Final = "/etc/docker/daemon.json"
_CERTS: Final = "/etc/docker/certs.d"
_WHO: Final = "the Docker daemon"
_RELOAD: Final = "systemctl reload docker"
_RESTART: Final = "systemctl restart docker"
_PROXY_SECONDS: Final = 15
_VARIABLE: Final = "HTTPS_PROXY"
_PROBE: Final = "https://registry-1.docker.io/v2/library/busybox/manifests/latest"
_SYSTEM_CAS: Final = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt")
_FIX: Final = {
    403: "add this machine's network to [access] networks of the mirror",
    407: "user and password in the address of the proxy (http://user:password@...)",
}
_NO_PROXY: Final = "see [proxy] listen of the mirror: is it on, and is this its port"


class SilentDaemonError(Exception):
    """The daemon has a socket and does not answer; the message is the reason, one line."""


@dataclass(frozen=True, slots=True)
class Daemon:
    """The settings of a running dockerd."""

    version: str
    mirrors: tuple[str, ...]
    insecure: tuple[str, ...]
    http_proxy: str
    https_proxy: str
    no_proxy: str
    containerd_store: bool

    @property
    def reads_hosts(self) -> bool:
        """Whether the daemon reads ``/etc/docker/certs.d/<registry>/hosts.toml``."""
        major = re.match(r"\d+", self.version)
        recent = major is not None and int(major[0]) >= _HOSTS_SINCE
        return recent and self.containerd_store


def is_insecure(insecure: tuple[str, ...], host: str, netloc: str) -> bool:
    """Whether a list of ``insecure-registries`` (names and networks) covers a registry."""
    return netloc in insecure or any(_holds(entry, host) for entry in insecure)


def _holds(network: str, host: str) -> bool:
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(network, strict=False)
    except (ValueError, TypeError):
        return False


async def ask(tree: Tree) -> Daemon | None:
    """Return the daemon of this machine, None if it has none.

    Raises:
        SilentDaemonError: the daemon does not answer.
    """
    sockets = [tree.at(path) for path in SOCKETS if tree.exists(path)]
    if not sockets:
        return None
    connector = aiohttp.UnixConnector(str(sockets[0]))
    timeout = aiohttp.ClientTimeout(total=_SECONDS)
    try:
        async with (
            aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
            session.get("http://docker/info") as response,
        ):
            info = table(json.loads(await read_up_to(response.content, _MOST_BYTES)))
    except aiohttp.ClientConnectorError as error:
        raise SilentDaemonError(error.strerror or str(error)) from error
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
        raise SilentDaemonError(str(error) or "no answer") from error
    return parsed(info)


def parsed(info: dict[str, Any]) -> Daemon:
    registries = table(info, "RegistryConfig")
    configs = table(registries, "IndexConfigs")
    insecure = [name for name, config in configs.items() if table(config).get("Secure") is False]
    status = info.get("DriverStatus")
    pairs = [strings(pair) for pair in status] if isinstance(status, list) else []
    return Daemon(
        version=str(info.get("ServerVersion", "")),
        mirrors=tuple(url.rstrip("/") for url in strings(registries.get("Mirrors"))),
        insecure=(*insecure, *strings(registries.get("InsecureRegistryCIDRs"))),
        http_proxy=str(info.get("HttpProxy") or ""),
        https_proxy=str(info.get("HttpsProxy") or ""),
        no_proxy=str(info.get("NoProxy") or ""),
        containerd_store=any(_CONTAINERD_STORE in pair for pair in pairs),
    )


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
    if daemon is not None and is_insecure(daemon.insecure, target.host, target.netloc):
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
    if not proxy or NoProxy(daemon.no_proxy).covers(target.host, target.port):
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
    insecure = tuple(strings(settings.get("insecure-registries")))
    return Trust(
        tree.certificates(directory),
        insecure=is_insecure(insecure, target.host, target.netloc),
        fix=f"copy the CA of the mirror to {directory}/ca.crt",
    )


def silent(reason: str) -> Finding:
    """Return the finding for a daemon that does not answer."""
    return note(_WHO, f"cannot be asked ({reason})", "run as root, or see whether it is up")


def lookup_through(
    tree: Tree, target: MirrorAddress, settings: dict[str, Any], daemon: Daemon | None
) -> Through | None:
    """Return the proxy of Docker if it is the mirror, else None."""
    written = str(table(settings, "proxies").get("https-proxy", ""))
    proxy = daemon.https_proxy if daemon is not None else written
    try:
        url = parse_proxy(proxy, _VARIABLE).url
    except InvalidProxyError:
        return None
    host = url.host or ""
    if not (host == target.host or (is_loopback(host) and target.local)):
        return None
    trusted = (str(tree.at(file)) for file in _SYSTEM_CAS if tree.exists(file))
    return Through(str(url), next(trusted, ""))


async def probe_proxy(through: Through) -> Finding:
    """Send a HEAD request to Docker Hub through the proxy, as Docker does."""
    context = ssl.create_default_context(cafile=through.ca_file or None)
    timeout = aiohttp.ClientTimeout(total=_PROXY_SECONDS)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.head(
                _PROBE, proxy=through.proxy, ssl=context, allow_redirects=False
            ) as response,
        ):
            return _judged(through.where, response)
    except aiohttp.ClientHttpProxyError as error:
        fix = _FIX.get(error.status, _NO_PROXY)
        return wrong(through.where, f"is refused: {error.status} {error.message}", fix)
    except aiohttp.ClientConnectorCertificateError:
        fix = "`mirror ca` on the mirror's machine prints it and says where it goes"
        return wrong(through.where, "does not trust the CA of the mirror", fix)
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
        return wrong(through.where, f"cannot get there: {masked(str(error))}", _NO_PROXY)


def _judged(where: str, response: aiohttp.ClientResponse) -> Finding:
    said = response.headers.get("Cache-Status", "")
    if said.startswith("mirror") or response.headers.get("Server") == "mirror":
        return ok(where, "is answered for Docker Hub, by its usual name")
    fix = 'enabled = true in [upstreams."docker.io"] of the mirror'
    return note(where, "is let through to Docker Hub: the mirror does not answer for it", fix)
