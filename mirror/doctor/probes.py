"""The very requests that a client makes, made of the mirror; nothing is downloaded."""

import asyncio
import contextlib
import os
import ssl
from dataclasses import dataclass
from typing import Final

import aiohttp
from yarl import URL

from mirror.doctor.report import Finding, Probe, Trust, Way, note, ok, wrong
from mirror.doctor.target import MirrorAddress
from mirror.oci.errors import lookup_message
from mirror.oci.image_name import HUB
from mirror.oci.media_types import CURRENT_TYPES
from mirror.upstream.sessions import read_up_to

_SECONDS: Final = 15  # dockerd's time-out for a mirror
_READ_BYTES: Final = 1 << 16
_ACCEPT: Final = ", ".join(CURRENT_TYPES)
_NOT_CONFIGURED: Final = "not configured for"
_FOR_HUB: Final = f"credentials you have for {HUB}"


async def probe_all(target: MirrorAddress, probes: list[Probe]) -> list[Finding]:
    """Send the requests of all probes; if ``/v2/`` fails for a client, report only that."""
    findings: list[Finding] = []
    by_trust: dict[Trust, list[Probe]] = {}
    for probe in probes:
        by_trust.setdefault(probe.trust, []).append(probe)
    timeout = aiohttp.ClientTimeout(total=_SECONDS)
    async with aiohttp.ClientSession(timeout=timeout, auto_decompress=False) as session:
        for trust, group in (by_trust or {Trust(): []}).items():
            findings += await _probe(session, target, trust, group)
    return findings


async def _probe(
    session: aiohttp.ClientSession, target: MirrorAddress, trust: Trust, probes: list[Probe]
) -> list[Finding]:
    try:
        asker = _Asker(session, target, _context(trust))
    except OSError as error:
        # An unreadable CA file; ssl.SSLError is an OSError too.
        files = ", ".join(trust.ca_files)
        return [wrong(target.url, f"no CA can be read from {files}: {error}", trust.fix)]
    try:
        hello = await asker.ask("GET", "/v2/")
    except (OSError, aiohttp.ClientError, TimeoutError) as error:
        return [await _explained(target, trust, error)]
    if not (hello.is_mirror or await _hidden(asker)):
        who = f" ({hello.server})" if hello.server else ""
        what = f"something other than a mirror answers there{who}, with status {hello.status}"
        fix = "see what listens on that port, and where the mirror does"
        return [wrong(target.url, what, fix)]
    if (refusal := _refusal(target, hello)) is not None:
        return [refusal]
    findings = [ok(target.url, "is a mirror, and asks for no password")]
    # One request per registry and way, for all clients.
    for registry, way in dict.fromkeys((probe.registry, probe.way) for probe in probes):
        findings.append(await _manifest(asker, registry, way))
    return findings


@dataclass(frozen=True, slots=True)
class _Reply:
    status: int
    server: str
    cache_status: str
    body: bytes

    @property
    def is_mirror(self) -> bool:
        return self.server == "mirror" or self.cache_status.startswith("mirror")

    @property
    def is_stale(self) -> bool:
        """Whether the answer is stale because upstream could not be asked (RFC 9211)."""
        return "fwd=stale" in self.cache_status and "revalidated" not in self.cache_status

    @property
    def message(self) -> str:
        """The message in the spec's error body, or the status."""
        return lookup_message(self.body) or f"status {self.status}"


@dataclass(frozen=True, slots=True)
class _Asker:
    session: aiohttp.ClientSession
    target: MirrorAddress
    context: ssl.SSLContext

    async def ask(self, method: str, path: str) -> _Reply:
        url = URL(self.target.url + path, encoded=True)
        headers = {"Accept": _ACCEPT, "User-Agent": "mirror doctor"}
        async with self.session.request(
            method, url, headers=headers, ssl=self.context, allow_redirects=False
        ) as response:
            return _Reply(
                response.status,
                response.headers.get("Server", ""),
                response.headers.get("Cache-Status", ""),
                await read_up_to(response.content, _READ_BYTES),
            )


def _context(trust: Trust) -> ssl.SSLContext:
    context = ssl.create_default_context()
    for file in trust.ca_files:
        context.load_verify_locations(file)
    if trust.insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


async def _hidden(asker: _Asker) -> bool:
    """Whether this is a mirror behind a reverse proxy that replaces the field ``Server``."""
    try:
        return (await asker.ask("HEAD", _path(HUB, Way.PATH))).is_mirror
    except (OSError, aiohttp.ClientError, TimeoutError):
        return False


def _refusal(target: MirrorAddress, hello: _Reply) -> Finding | None:
    if hello.status == 401 and _FOR_HUB in hello.message:
        what = "/v2/ asks for a password for Docker Hub: Docker without one pulls past the mirror"
        return note(target.url, what)
    if hello.status == 401:
        what = "/v2/ asks for a password, and Docker sends the one it has for Docker Hub"
        fix = (
            "let clients in by [access] networks rather than by htpasswd_file; give an upstream "
            "with client_credentials a separate name of the mirror (hosts)"
        )
        return wrong(target.url, what, fix)
    if hello.status == 403:
        return wrong(target.url, hello.message, "add this machine's network to [access] networks")
    if hello.status != 200:
        return wrong(target.url, f"/v2/: {hello.message}", "see the log of the mirror")
    return None


async def _manifest(asker: _Asker, registry: str, way: Way) -> Finding:
    """Ask for an image by HEAD, as a client does; after a failure by GET, to get the reason."""
    where = f"{asker.target.url} for {registry}, asked {way}"
    path = _path(registry, way)
    try:
        reply = await asker.ask("HEAD", path)
        if reply.status != 200:
            reply = await asker.ask("GET", path)
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        return wrong(where, f"breaks off: {error!r}", "see the log of the mirror")
    return _judged(where, registry, reply)


def _path(registry: str, way: Way) -> str:
    # For Docker Hub an image that exists; for others any name, because 404 is an answer too.
    image = "library/busybox" if registry == HUB else "mirror-doctor/probe"
    name = f"{registry}/{image}" if way is Way.PATH else image
    query = f"?ns={registry}" if way is Way.NAMESPACE else ""
    return f"/v2/{name}/manifests/latest{query}"


def _judged(where: str, registry: str, reply: _Reply) -> Finding:
    if reply.status == 200 and reply.is_stale:
        return note(where, "served as last known, because upstream does not answer")
    if reply.status in {200, 404}:
        return ok(where, "is answered")
    if reply.status in {401, 403} and _NOT_CONFIGURED not in reply.message:
        return note(where, f"upstream wants a login: {reply.message}")
    return _trouble(where, registry, reply)


def _trouble(where: str, registry: str, reply: _Reply) -> Finding:
    match reply.status:
        case 403:
            fix = f'[upstreams."{registry}"] in the configuration of the mirror'
            return wrong(where, f"the mirror is not configured for {registry}", fix)
        case 429:
            fix = f'username and password_file in [upstreams."{registry}"] of the mirror'
            return wrong(where, f"upstream limits the rate: {reply.message}", fix)
        case 502 | 504:
            fix = "see on the mirror's machine whether upstream, DNS or a proxy is down"
            return wrong(where, f"the mirror does not reach upstream: {reply.message}", fix)
        case _:
            return wrong(where, reply.message, "see the log of the mirror")


_TLS_SECONDS: Final = 5
_EXPIRED: Final = 10  # OpenSSL's X509_V_ERR_CERT_HAS_EXPIRED
_OTHER_NAME: Final = (62, 64)  # ..._HOSTNAME_MISMATCH, ..._IP_ADDRESS_MISMATCH


async def _explained(target: MirrorAddress, trust: Trust, error: Exception) -> Finding:
    """Return the finding for a failed request to ``/v2/``."""
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return _certificate(target, trust, error.certificate_error)
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        fix = "see /etc/hosts and the name server of this machine, or use its address"
        return wrong(target.url, f"{target.host} cannot be resolved", fix)
    if isinstance(error, aiohttp.ClientSSLError):
        fix = f"http://{target.netloc} in the configuration of the client"
        return wrong(target.url, "answers, but speaks no TLS: wrong scheme or port", fix)
    if isinstance(error, aiohttp.ClientConnectorError):
        fix = "start the mirror there; see host, port and [server] listen, then firewalls"
        # asyncio's own strerror is "Connect call failed (...)".
        reason = os.strerror(error.errno).lower() if error.errno else error
        return wrong(target.url, f"cannot be reached: {reason}", fix)
    if isinstance(error, aiohttp.ClientError):
        return await _no_http(target)
    fix = "see whether a firewall drops connections, or what keeps the mirror busy"
    return wrong(target.url, f"does not answer: {error or 'no answer in time'}", fix)


def _certificate(target: MirrorAddress, trust: Trust, error: Exception) -> Finding:
    code = getattr(error, "verify_code", 0)
    if code == _EXPIRED:
        fix = "renew [server] tls_certificate of the mirror"
        return wrong(target.url, "its certificate has expired", fix)
    if code in _OTHER_NAME:
        fix = f"a certificate for {target.host}, or the name that it is for in the client"
        return wrong(target.url, f"its certificate is not for {target.host}", fix)
    return wrong(target.url, "its certificate is from a CA that is not trusted here", trust.fix)


async def _no_http(target: MirrorAddress) -> Finding:
    if target.plain and await _speaks_tls(target):
        fix = f"https://{target.netloc} in the configuration of the client"
        return wrong(target.url, "speaks https, not http", fix)
    fix = "see what listens on that port, and where the mirror does"
    return wrong(target.url, "something other than a mirror answers there, and no HTTP", fix)


async def _speaks_tls(target: MirrorAddress) -> bool:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        async with asyncio.timeout(_TLS_SECONDS):
            _, writer = await asyncio.open_connection(target.host, target.port, ssl=context)
    except (OSError, TimeoutError):
        return False
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return True
