"""TLS for the hosts the mirror stands for: a certificate per host, made when it is first asked."""

import logging
import ssl
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

from mirror.ca.errors import AuthorityError
from mirror.ca.signing import HOST_LIFE, Authority, host_certificate

_RENEW: Final = HOST_LIFE / 3  # so long before the end


_log = logging.getLogger(__name__)


def _now() -> datetime:
    return datetime.fromtimestamp(time.time(), UTC)


class CertificateIssuer:
    """Makes what servers of TLS need, and keeps it; the caller bounds how many hosts there are."""

    def __init__(self, authority: Authority, clock: Callable[[], datetime] = _now) -> None:
        self._authority = authority
        self._clock = clock
        self._contexts: dict[str, tuple[ssl.SSLContext, datetime]] = {}  # and when it was made
        self._told = False

    def context(self, host: str) -> ssl.SSLContext:
        """TLS as ``host``, whatever name the client asks for in it.

        Raises:
            AuthorityError: the CA is not valid now; the log says so once.
        """
        now = self._clock()
        self._check(now)
        context, made = self._contexts.get(host, (None, now))
        # Also where the clock was ahead then: for clients, what it made is not valid yet.
        if context is None or not made <= now < made + HOST_LIFE - _RENEW:
            context = _server(host_certificate(self._authority, host, now))
            self._contexts[host] = context, now
        return context

    def _check(self, now: datetime) -> None:
        authority = self._authority
        if authority.valid_from <= now < authority.valid_until:
            self._told = False
            return
        error = AuthorityError(
            f"the CA of [proxy] is valid from {authority.valid_from:%Y-%m-%d} to "
            f"{authority.valid_until:%Y-%m-%d}, and the clock says {now:%Y-%m-%d}: remove its "
            "ca.pem and restart the mirror, and tell clients of the new CA (mirror ca)"
        )
        if not self._told:
            _log.error("%s", error)
        self._told = True
        raise error


def _server(pem: bytes) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.set_alpn_protocols(["http/1.1"])
    with tempfile.NamedTemporaryFile(prefix="mirror-") as file:  # the library reads files alone
        file.write(pem)
        file.flush()
        context.load_cert_chain(file.name)
    return context
