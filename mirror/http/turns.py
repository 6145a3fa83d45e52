"""Limited concurrency with a fair queue per client.

A client with many waiting jobs delays only itself.
"""

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class LineFullError(Exception):
    """The queue of a client is full."""


class Turns:
    """Grants at most ``most`` turns at once, ``most_per_client`` of them to one client."""

    def __init__(self, most: int, most_per_client: int, most_waiting: int) -> None:
        """Let ``most_waiting`` jobs of one client wait; refuse more."""
        self._most = most
        self._most_per_client = most_per_client
        self._most_waiting = most_waiting
        self._taken: Counter[str] = Counter()
        # In the order in which clients are served next; no queue in it is empty.
        self._lines: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    @asynccontextmanager
    async def turn(self, client: str) -> AsyncIterator[None]:
        """Wait for a turn, and hold it while the context is open.

        Raises:
            LineFullError: the queue of the client is full.
        """
        if client in self._lines or not self._may(client):
            await self._wait(client)  # _end() has counted the turn for this client
        else:
            self._taken[client] += 1
        try:
            yield
        finally:
            self._end(client)

    def _may(self, client: str) -> bool:
        all_taken = self._taken.total() >= self._most
        return not all_taken and self._taken[client] < self._most_per_client

    async def _wait(self, client: str) -> None:
        line = self._lines.get(client, deque())
        if len(line) >= self._most_waiting:
            raise LineFullError(client)
        waiting = asyncio.get_running_loop().create_future()
        line.append(waiting)
        self._lines[client] = line
        try:
            await waiting
        except asyncio.CancelledError:
            if waiting.cancelled():
                line.remove(waiting)
                if not line:
                    del self._lines[client]
            else:  # the turn was granted before the cancellation arrived
                self._end(client)
            raise

    def _end(self, client: str) -> None:
        self._taken[client] -= 1
        if not self._taken[client]:
            del self._taken[client]
        # A turn is free: it goes to the eligible client that was served longest ago.
        following = next((each for each in self._lines if self._may(each)), None)
        if following is None:
            return
        line = self._lines.pop(following)
        line.popleft().set_result(None)
        self._taken[following] += 1
        if line:
            self._lines[following] = line
