"""What receives clients: where requests go, who gets in, who is believed, how many at once."""

from dataclasses import dataclass

from mirror.web.admission import Admission
from mirror.web.forwarded import Proxies
from mirror.web.hot import HotTable
from mirror.web.routes import Handlers


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """Connections of all clients and of one address; seconds one may wait for a request."""

    connections: int
    connections_per_client: int
    idle_seconds: float


@dataclass(frozen=True, slots=True)
class Reception:
    """All that a server asks about a request; made of one configuration.

    What is answered from ``table`` is what was answered before; None: nothing is.  ``proxy`` has
    the handlers of what comes in by the proxy's port, where there is one.
    """

    routes: Handlers
    admission: Admission
    proxies: Proxies
    limits: ServerLimits
    table: HotTable | None
    proxy: Handlers | None = None
