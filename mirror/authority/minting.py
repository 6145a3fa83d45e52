"""TLS for the hosts the mirror stands for: a certificate per host, made when it is first asked."""

import ssl
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

from mirror.authority.signing import HOST_LIFE, Authority, host_certificate

_RENEW: Final = HOST_LIFE / 3  # so long before the end


def _now() -> datetime:
    return datetime.now(UTC)


class Mint:
    """Makes what servers of TLS need, and keeps it; the caller bounds how many hosts there are."""

    def __init__(self, authority: Authority, clock: Callable[[], datetime] = _now) -> None:
        self._authority = authority
        self._clock = clock
        self._contexts: dict[str, tuple[ssl.SSLContext, datetime]] = {}

    def context(self, host: str) -> ssl.SSLContext:
        """TLS as ``host``, whatever name the client asks for in it."""
        now = self._clock()
        context, renewal = self._contexts.get(host, (None, now))
        if context is None or renewal <= now:
            context = _server(host_certificate(self._authority, host, now))
            self._contexts[host] = context, now + HOST_LIFE - _RENEW
        return context


def _server(pem: bytes) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.set_alpn_protocols(["http/1.1"])
    with tempfile.NamedTemporaryFile(prefix="mirror-") as file:  # the library reads files alone
        file.write(pem)
        file.flush()
        context.load_cert_chain(file.name)
    return context
