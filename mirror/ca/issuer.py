"""TLS contexts for the registries' hosts: one certificate per host, made on first use."""

import logging
import ssl
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

from mirror.ca.signing import HOST_LIFE, Authority, host_certificate
from mirror.user_error import UserError

_RENEW: Final = HOST_LIFE / 3  # before the certificate expires


_log = logging.getLogger(__name__)


def _now() -> datetime:
    return datetime.fromtimestamp(time.time(), UTC)


class CertificateIssuer:
    """Makes and caches a TLS server context per host; the caller limits the number of hosts."""

    def __init__(self, authority: Authority, clock: Callable[[], datetime] = _now) -> None:
        self._authority = authority
        self._clock = clock
        # Each context with the time it was made.
        self._contexts: dict[str, tuple[ssl.SSLContext, datetime]] = {}
        self._told = False

    def context(self, host: str) -> ssl.SSLContext:
        """Return a TLS server context with a certificate for ``host``; the client's SNI is ignored.

        Raises:
            UserError: the CA is not valid now; the log says so once.
        """
        now = self._clock()
        self._check(now)
        context, made = self._contexts.get(host, (None, now))
        # Also renew if the clock was ahead at that time: clients would reject the certificate as
        # not yet valid.
        if context is None or not made <= now < made + HOST_LIFE - _RENEW:
            context = _server(host_certificate(self._authority, host, now))
            self._contexts[host] = context, now
        return context

    def _check(self, now: datetime) -> None:
        authority = self._authority
        if authority.valid_from <= now < authority.valid_until:
            self._told = False
            return
        error = UserError(
            f"the CA of [proxy] is valid from {authority.valid_from:%Y-%m-%d} to "
            f"{authority.valid_until:%Y-%m-%d}, and the clock says {now:%Y-%m-%d}: remove its "
            "ca.pem, restart the mirror, and give the new CA to the clients (mirror ca)"
        )
        if not self._told:
            _log.error("%s", error)
        self._told = True
        raise error


def _server(pem: bytes) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.set_alpn_protocols(["http/1.1"])
    with tempfile.NamedTemporaryFile(prefix="mirror-") as file:  # ssl reads chains from files only
        file.write(pem)
        file.flush()
        context.load_cert_chain(file.name)
    return context
