"""How a connection arrived: on the mirror's port, on the proxy port, or inside a proxied one."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ConnectionContext:
    """How a connection arrived.

    ``proxy``: on the proxy port, where each request names its server.
    ``upstream``: inside TLS that the mirror terminates in the name of this upstream's registry;
    ``client`` is the address that sent the CONNECT.
    """

    proxy: bool = False
    upstream: str = ""
    client: str = ""


DIRECT = ConnectionContext()
PROXY = ConnectionContext(proxy=True)
