"""Which way a connection came in: by the mirror's own port, by the proxy's, or through that."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ConnectionContext:
    """A way in.

    ``proxy``: the proxy's port, where a request names the server that it is for.
    ``upstream``: inside TLS that is spoken here in the name of this upstream's registry, for the
    ``client`` that asked the proxy for it.
    """

    proxy: bool = False
    upstream: str = ""
    client: str = ""


DIRECT = ConnectionContext()
PROXY = ConnectionContext(proxy=True)
