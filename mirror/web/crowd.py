"""How many connections there are, of all clients and of each."""

from collections import Counter
from typing import Final

_OVERRUN: Final = 1.25  # of the limit: up to it there is an answer, beyond it there is none


class Crowd:
    """Counts connections by the address they come from; sockets without one count together."""

    def __init__(self, most: int, most_per_client: int) -> None:
        self._most = most
        self._most_per_client = most_per_client
        self._clients: Counter[str] = Counter()
        self._all = 0

    @property
    def overrun(self) -> bool:
        """Whether there are more than could be told that there are too many."""
        return self._all > self._most * _OVERRUN

    def enter(self, client: str) -> str:
        """One more connection; says why its requests are to be refused, empty if they are not."""
        self._all += 1
        self._clients[client] += 1
        if self._all > self._most:
            return f"too many connections ([limits] connections = {self._most})"
        if client and self._clients[client] > self._most_per_client:
            limit = f"[limits] connections_per_client = {self._most_per_client}"
            return f"too many connections from {client} ({limit})"
        return ""

    def leave(self, client: str) -> None:
        """One connection less."""
        self._all -= 1
        self._clients[client] -= 1
        if not self._clients[client]:
            del self._clients[client]
