"""The address of the mirror, its comparison with other addresses, and why it cannot be reached."""

import asyncio
import contextlib
import ssl
from dataclasses import dataclass
from enum import Enum, auto
from typing import Final
from urllib.parse import SplitResult, urlsplit

import aiohttp

from mirror.clients import ClientUrl, is_loopback
from mirror.doctor.examination import Trust
from mirror.doctor.report import Finding, wrong

_PORTS: Final = {"http": 80, "https": 443}


class Likeness(Enum):
    """The difference between an address in a file and that of the mirror."""

    SAME = auto()
    PATH = auto()
    SCHEME = auto()
    LOGIN = auto()
    PORT = auto()
    OTHER = auto()


@dataclass(frozen=True, slots=True)
class MirrorAddress(ClientUrl):
    """The address of the mirror that clients should use."""

    @property
    def port(self) -> int:
        """The port; the default one of the scheme if the URL has none."""
        return _port(urlsplit(self.url))

    def difference(self, url: str) -> str | None:
        """Return the mistake in an address meant for the mirror; None for any other address."""
        reasons = {
            Likeness.SCHEME: f"and the mirror speaks {'http' if self.plain else 'https'}",
            Likeness.PORT: f"and the mirror is at port {self.port}",
            Likeness.PATH: "and the mirror's address has no path",
            Likeness.LOGIN: "and no user and password may stand there",
        }
        return reasons.get(self.likeness(url))

    @property
    def local(self) -> bool:
        """Whether the mirror is on this machine."""
        return is_loopback(self.host)

    def likeness(self, url: str) -> Likeness:
        """Compare an address with a scheme to that of the mirror."""
        try:
            other = urlsplit(url)
            port = _port(other)
        except ValueError:
            return Likeness.OTHER
        if (other.hostname or "") != self.host:
            return Likeness.OTHER
        if port != self.port:
            # If neither has a port, the default ports differ because the schemes do.
            return Likeness.PORT if other.port or urlsplit(self.url).port else Likeness.SCHEME
        if other.scheme != urlsplit(self.url).scheme:
            return Likeness.SCHEME
        return _likeness_behind(other)

    def is_at(self, netloc: str) -> bool:
        """Whether ``host[:port]`` without a scheme is the address of the mirror."""
        return self.likeness(f"{urlsplit(self.url).scheme}://{netloc}") is Likeness.SAME


def _likeness_behind(other: SplitResult) -> Likeness:
    """Compare the rest of an address with the right scheme, host and port."""
    if other.username is not None:
        return Likeness.LOGIN
    extra = other.path.rstrip("/") or other.query or other.fragment
    return Likeness.PATH if extra else Likeness.SAME


def _port(parts: SplitResult) -> int:
    return parts.port or _PORTS.get(parts.scheme, 0)


_SECONDS: Final = 5
_EXPIRED: Final = 10  # OpenSSL's X509_V_ERR_CERT_HAS_EXPIRED
_OTHER_NAME: Final = (62, 64)  # ..._HOSTNAME_MISMATCH, ..._IP_ADDRESS_MISMATCH


async def explained(target: MirrorAddress, trust: Trust, error: Exception) -> Finding:
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
        return wrong(target.url, f"cannot be reached: {error.strerror or error}", fix)
    if isinstance(error, aiohttp.ClientError):
        return await _no_http(target)
    fix = "see whether a firewall drops connections, or what keeps the mirror busy"
    return wrong(target.url, f"does not answer: {error or 'no answer in time'}", fix)


def no_authority(target: MirrorAddress, trust: Trust, error: OSError) -> Finding:
    """Return the finding for an unreadable CA file; ``ssl.SSLError`` is an OSError too."""
    files = ", ".join(trust.ca_files)
    return wrong(target.url, f"no CA can be read from {files}: {error}", trust.fix)


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
        async with asyncio.timeout(_SECONDS):
            _, writer = await asyncio.open_connection(target.host, target.port, ssl=context)
    except (OSError, TimeoutError):
        return False
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return True
