"""Explains why a connection to the mirror fails."""

import asyncio
import contextlib
import os
import ssl
from typing import Final

import aiohttp

from mirror.doctor.inspection import Trust
from mirror.doctor.report import Finding, wrong
from mirror.doctor.target import MirrorAddress

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
        # asyncio's own strerror is "Connect call failed (...)".
        reason = os.strerror(error.errno).lower() if error.errno else error
        return wrong(target.url, f"cannot be reached: {reason}", fix)
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
