"""Translates exceptions of aiohttp to the errors of this package, in this one place."""

from collections.abc import Mapping
from typing import Final

import aiohttp
from yarl import URL

from mirror.upstream.errors import TimedOutError, UnavailableError, UpstreamError
from mirror.upstream.proxies import Proxy
from mirror.upstream.resolver import PrivateAddressError

_PROXY_LOGIN: Final = 407
#: The order matters: base classes come after their subclasses.
_FAILURES: Final[Mapping[type[Exception], str]] = {
    aiohttp.ClientConnectorDNSError: "the name of {origin} does not resolve",
    aiohttp.ClientConnectorCertificateError: (
        "the certificate of {origin} is not trusted (ca_file adds a CA)"
    ),
    aiohttp.ClientConnectorError: "cannot connect to {origin}",
    aiohttp.ClientPayloadError: "{origin} broke off in the middle of a body",
}


def translated(
    upstream: str, url: URL, error: Exception, proxy: Proxy | None = None
) -> UpstreamError:
    """Return the error for an exception of aiohttp.

    The message names the origin and the proxy, never the path or the query: these may be signed.
    """
    origin = place(url, proxy)
    if isinstance(error, TimeoutError):
        return TimedOutError(upstream, f"{origin} did not answer in time")
    return UnavailableError(upstream, _what(error, proxy).format(origin=origin, proxy=proxy))


def place(url: URL, proxy: Proxy | None) -> str:
    """Return the name of a server in messages: its origin and the proxy."""
    origin = str(url.origin() if url.host else url)
    return origin if proxy is None else f"{origin} through the proxy {proxy}"


def _what(error: Exception, proxy: Proxy | None) -> str:
    if isinstance(error, aiohttp.ClientHttpProxyError):
        wants = " (it wants user and password)" if error.status == _PROXY_LOGIN else ""
        return f"{{origin}} cannot be reached: the proxy answered {error.status}{wants}"
    if proxy is not None and isinstance(error, aiohttp.ClientConnectorDNSError):
        return "the name of the proxy {proxy} does not resolve"
    if isinstance(error, aiohttp.ClientProxyConnectionError):
        return "cannot connect to the proxy {proxy}"
    cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    if isinstance(cause, PrivateAddressError):
        return "leads to the private address {origin} (private_redirects allows it)"
    for kind, text in _FAILURES.items():
        if isinstance(error, kind):
            return text
    return f"talking to {{origin}} failed ({type(error).__name__})"
