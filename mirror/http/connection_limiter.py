"""How many connections there are, of all clients and of each."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from mirror.shares import client_name

_OVERRUN: Final = 1.25  # of the limit: up to it there is an answer, beyond it there is none


class ConnectionLimiter:
    """Counts connections by client: an address, or an IPv6 /64; sockets without one together."""

    def __init__(self, most: int, most_per_client: int) -> None:
        self._most = most
        self._most_per_client = most_per_client
        self._clients: Counter[str] = Counter()
        self._all = 0

    def limit(self, most: int, most_per_client: int) -> None:
        """Refuse what is more than that from now on; who is in stays."""
        self._most = most
        self._most_per_client = most_per_client

    @property
    def overrun(self) -> bool:
        """Whether there are more than could be told that there are too many."""
        return self._all > self._most * _OVERRUN

    def enter(self, client: str) -> str:
        """One more connection; says why its requests are to be refused, empty if they are not."""
        client = client and client_name(client)
        self._all += 1
        self._clients[client] += 1
        if self._all > self._most:
            return f"too many connections ([limits] connections = {self._most})"
        return self._excess(client, "connections")

    def leave(self, client: str) -> None:
        """One connection less."""
        self._all -= 1
        self._forget(client and client_name(client))

    @contextmanager
    def visited(self, client: str) -> Iterator[str]:
        """A request of a client behind a proxy, whose connections are not its own, as ``enter``."""
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
