"""The only seam between aiohttp's exceptions and ours."""

from collections.abc import Mapping
from typing import Final

import aiohttp
from yarl import URL

from mirror.upstream.errors import TimedOutError, UnavailableError, UpstreamError
from mirror.upstream.resolver import PrivateAddressError

#: In this order: the last ones are the first ones' base classes.
_FAILURES: Final[Mapping[type[Exception], str]] = {
    aiohttp.ClientConnectorDNSError: "the name of {origin} does not resolve",
    aiohttp.ClientConnectorCertificateError: (
        "the certificate of {origin} is not trusted (ca_file adds a CA)"
    ),
    aiohttp.ClientConnectorError: "cannot connect to {origin}",
    aiohttp.ClientPayloadError: "{origin} broke off in the middle of a body",
}


def translated(upstream: str, url: URL, error: Exception) -> UpstreamError:
    """An exception of aiohttp's as one of ours.

    The message names the origin and never the path or query, which may be signed.
    """
    origin = url.origin() if url.host else url
    if isinstance(error, TimeoutError):
        return TimedOutError(upstream, f"{origin} did not answer in time")
    return UnavailableError(upstream, _what(error).format(origin=origin))


def _what(error: Exception) -> str:
    cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    if isinstance(cause, PrivateAddressError):
        return "leads to the private address {origin} (private_redirects allows it)"
    for kind, text in _FAILURES.items():
        if isinstance(error, kind):
            return text
    return f"talking to {{origin}} failed ({type(error).__name__})"
