"""Errors of an upstream, one class for each way to handle them; aiohttp's are translated here."""

import os
import ssl
from collections.abc import Mapping, Sequence
from typing import Final

import aiohttp
from yarl import URL

from mirror.upstream.addresses import PrivateAddressError
from mirror.upstream.proxies import Proxy


class UpstreamError(Exception):
    """Upstream did not answer a request as asked.  The message contains no secret."""

    word = "failed"
    """The kind of error, as a token of Cache-Status and of the log."""
    transient = False
    by_status = False
    """Whether upstream answered with an error status: another method may have another answer."""
    remedy = "check the network, DNS, and the address"
    """What the operator can do if the trouble lasts."""

    def __init__(self, upstream: str, message: str) -> None:
        super().__init__(f"{upstream}: {message}")
        self.upstream = upstream
        self.message = message


class NotFoundError(UpstreamError):
    """404: upstream does not have it."""

    word = "not_found"
    by_status = True


class RefusedError(UpstreamError):
    """Upstream refuses this client; ``challenges`` are the WWW-Authenticate fields."""

    word = "refused"
    by_status = True

    def __init__(self, upstream: str, message: str, challenges: Sequence[str] = ()) -> None:
        super().__init__(upstream, message)
        self.challenges = tuple(challenges)


class UnauthorizedError(RefusedError):
    """401, also with a token: the repository is private or (Docker Hub) does not exist."""

    word = "unauthorized"


class LoginRefusedError(UnauthorizedError):
    """Upstream refuses the mirror's own user and password: other clients are not at fault."""

    word = "login_refused"
    by_status = False


class DeniedError(RefusedError):
    """403."""

    word = "denied"


class RateLimitedError(UpstreamError):
    """429; ``retry_after`` is in seconds from now."""

    word = "rate_limited"

    def __init__(self, upstream: str, message: str, retry_after: float) -> None:
        super().__init__(upstream, message)
        self.retry_after = retry_after


class RejectedError(UpstreamError):
    """400, 402, 410, 413 or 451; ``code`` is that of upstream's error body, empty without one."""

    word = "rejected"
    by_status = True

    def __init__(self, upstream: str, message: str, status: int, code: str = "") -> None:
        super().__init__(upstream, message)
        self.status = status
        self.code = code


class UnavailableError(UpstreamError):
    """Upstream cannot be reached, broke off, or answered 5xx or nonsense."""

    word = "unavailable"
    transient = True


class BrokenBodyError(UnavailableError):
    """The connection ended in the middle of a body."""


class UnreachableError(UnavailableError):
    """No connection to upstream can be made."""

    word = "unreachable"


class NonsenseError(UnavailableError):
    """Upstream answered with content that does not match the request."""

    word = "invalid_answer"


class OversizedAnswerError(NonsenseError):
    """Upstream answered with a body that is too large to hold in memory."""


class RedirectError(UnavailableError):
    """Upstream redirects to an address that the mirror does not follow."""

    word = "redirect_refused"


class RangeRefusedError(UpstreamError):
    """416: the stored part of a blob is not a prefix of the blob at upstream."""

    word = "range_refused"


class OversizedError(UpstreamError):
    """A blob is larger than ``[fetch] max_blob_size``, or does not end."""

    word = "too_large"


class TimedOutError(UpstreamError):
    """Upstream was reached and then was too slow."""

    word = "timed_out"
    transient = True


_PROXY_LOGIN: Final = 407
_DISTRUST: Final = "is not trusted (ca_file adds a CA)"
#: What is wrong with a certificate, by OpenSSL's code (X509_V_ERR_...).
_DISTRUST_BY_CODE: Final = {
    9: "is not valid yet",
    10: "has expired, or that of its CA",
    62: "is for another host name",
    64: "is for another address",
}
_CERTIFICATE_REMEDY: Final = "check the certificate, ca_file, and the clock of this machine"
#: The order matters: base classes come after their subclasses.
_FAILURES: Final[Mapping[type[Exception], str]] = {
    aiohttp.ClientConnectorDNSError: "the name of {origin} does not resolve",
    aiohttp.ClientConnectorCertificateError: "the certificate of {origin} {cause}",
    aiohttp.ClientConnectorError: "cannot connect to {origin}{cause}",
    aiohttp.ClientPayloadError: "{origin} broke off in the middle of a body",
    aiohttp.ServerDisconnectedError: "{origin} closed the connection without an answer",
    aiohttp.ClientResponseError: "{origin} does not answer in HTTP",
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
    text = _what(error, proxy).format(origin=origin, proxy=proxy, cause=_cause(error))
    connecting = isinstance(error, aiohttp.ClientConnectorError | aiohttp.ClientHttpProxyError)
    forbidden = isinstance(_os_error(error), PrivateAddressError)
    if isinstance(error, aiohttp.ClientPayloadError):
        return BrokenBodyError(upstream, text)
    failure = (UnreachableError if connecting and not forbidden else UnavailableError)(
        upstream, text
    )
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        failure.remedy = _CERTIFICATE_REMEDY
    return failure


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
    if isinstance(_os_error(error), PrivateAddressError):
        return "leads to the private address {origin} (private_redirects allows it)"
    for kind, text in _FAILURES.items():
        if isinstance(error, kind):
            return text
    return "the connection to {origin} failed{cause}"


def _os_error(error: Exception) -> Exception:
    return error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error


def _cause(error: Exception) -> str:
    """Return what is wrong with a certificate, or the system's words in parentheses, or ""."""
    cause = _os_error(error)
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        code = getattr(error.certificate_error, "verify_code", 0)
        return _DISTRUST_BY_CODE.get(code, _DISTRUST)
    if isinstance(cause, ssl.SSLError):
        return f" (TLS: {cause.reason.replace('_', ' ').lower()})" if cause.reason else ""
    number = cause.errno if isinstance(cause, OSError) else None
    if number is None and isinstance(cause, ConnectionResetError):  # asyncio's own, in a handshake
        return " (the connection was closed in the TLS handshake)"
    return f" ({os.strerror(number).lower()})" if number else ""
