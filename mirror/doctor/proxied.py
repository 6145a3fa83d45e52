"""Docker with the mirror as its HTTPS proxy: checks the connection and the trust in the CA."""

import ssl
from dataclasses import dataclass
from typing import Any, Final

import aiohttp

from mirror.clients import is_loopback
from mirror.config.fields import masked
from mirror.doctor.daemon import Daemon
from mirror.doctor.files import Tree, table
from mirror.doctor.report import Finding, note, ok, wrong
from mirror.doctor.target import MirrorAddress
from mirror.upstream.proxies import InvalidProxyError, NoProxy, parse_proxy

_SECONDS: Final = 15
_VARIABLE: Final = "HTTPS_PROXY"
_PROBE: Final = "https://registry-1.docker.io/v2/library/busybox/manifests/latest"
_SYSTEM_CAS: Final = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt")
_FIX: Final = {
    403: "add this machine's network to [access] networks of the mirror",
    407: "user and password in the address of the proxy (http://user:password@...)",
}
_NO_PROXY: Final = "see [proxy] listen of the mirror: is it on, and is this its port"


@dataclass(frozen=True, slots=True)
class Through:
    """A proxy of Docker, and the file with the CAs that it trusts (empty: the system's)."""

    proxy: str
    ca_file: str

    @property
    def where(self) -> str:
        """The name of the proxy in findings, without a password."""
        return f"Docker through the proxy {masked(self.proxy)}"


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
    timeout = aiohttp.ClientTimeout(total=_SECONDS)
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


def goes_direct(no_proxy: str, host: str, port: int) -> bool:
    """Whether a client with this NO_PROXY reaches ``host`` without its proxy."""
    return NoProxy(no_proxy).covers(host, port)
