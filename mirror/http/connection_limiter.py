"""Connection limits: for all clients together and for each client."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from mirror.shares import client_name

_OVERRUN: Final = 1.25  # of the limit: up to here clients get 503, beyond it no answer


class ConnectionLimiter:
    """Counts connections by client.

    A client is an IPv4 address or an IPv6 /64 network.  Connections without an address (unix
    sockets, trusted proxies) have no limit per client.
    """

    def __init__(self, most: int, most_per_client: int) -> None:
        self._most = most
        self._most_per_client = most_per_client
        self._clients: Counter[str] = Counter()
        self._all = 0

    def limit(self, most: int, most_per_client: int) -> None:
        """Use other limits for new connections; open connections stay."""
        self._most = most
        self._most_per_client = most_per_client

    @property
    def overrun(self) -> bool:
        """Whether there are too many connections even to answer 503."""
        return self._all > self._most * _OVERRUN

    def enter(self, client: str) -> str:
        """Count a new connection; return why its requests must be refused, empty if allowed."""
        client = client and client_name(client)
        self._all += 1
        self._clients[client] += 1
        if self._all > self._most:
            return f"too many connections ([limits] connections = {self._most})"
        return self._excess(client, "connections")

    def leave(self, client: str) -> None:
        """Count the end of a connection."""
        self._all -= 1
        self._forget(client and client_name(client))

    @contextmanager
    def visited(self, client: str) -> Iterator[str]:
        """Count one request of a client behind a trusted proxy; yield the same as ``enter``.

        The proxy's connections are shared by its clients, so requests are counted instead.
        """
        client = client and client_name(client)
        self._clients[client] += 1
        try:
            yield self._excess(client, "requests at once")
        finally:
            self._forget(client)

    def _excess(self, client: str, what: str) -> str:
        if not client or self._clients[client] <= self._most_per_client:
            return ""
        limit = f"[limits] connections_per_client = {self._most_per_client}"
        return f"too many {what} from {client} ({limit})"

    def _forget(self, client: str) -> None:
        self._clients[client] -= 1
        if not self._clients[client]:
            del self._clients[client]
