"""Clients that pull one path: ``python -m tools.bench.downloads '{"ports": ...}'``.

They discard bodies in the kernel (``MSG_TRUNC``, tcp(7)), so that they cost little beside the
server.  Prints the result as JSON.
"""

import json
import re
import select
import socket
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from tools.bench.corpus import ACCEPT

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_HEADER_BYTES = 4096
_DISCARD = bytearray(8 << 20)  # never written to, so it costs no memory
_PATIENCE_SECONDS = 120.0


@dataclass(frozen=True)
class Orders:
    """Number of clients, and for how many seconds they repeat the pull (0: each pulls once).

    The clients are spread over ``ports``.
    """

    ports: Sequence[int]
    path: str
    clients: int = 1
    seconds: float = 0.0


@dataclass
class Client:
    """One connection, and the state of its response."""

    connection: socket.socket
    request: bytes
    asked_at: float = 0.0
    head: bytes = b""
    left: int = -1  # bytes of the body; -1 while the headers are not complete
    first_bytes: list[float] = field(default_factory=list)
    received: int = 0
    pulls: int = 0

    def ask(self) -> None:
        self.asked_at, self.head, self.left = time.monotonic(), b"", -1
        self.connection.sendall(self.request)

    def read(self) -> None:
        """Read available data of one response."""
        try:
            if self.left < 0:
                self._read_head()
            if self.left > 0:
                limit = min(self.left, len(_DISCARD))
                self._took(self.connection.recv_into(_DISCARD, limit, socket.MSG_TRUNC))
        except BlockingIOError:
            return

    def _read_head(self) -> None:
        self.head += self._some(self.connection.recv(_HEADER_BYTES))
        head, complete, body = self.head.partition(b"\r\n\r\n")
        if not complete:
            return
        length = _LENGTH.search(head)
        if not head.startswith(b"HTTP/1.1 200 ") or length is None:
            raise SystemExit(f"answered {head!r}")
        self.left = int(length[1])
        if body:
            self._took(len(body))

    def _took(self, count: int) -> None:
        if count == 0:
            raise SystemExit(f"closed with {self.left} bytes to go")
        if len(self.first_bytes) == self.pulls:
            self.first_bytes.append(time.monotonic() - self.asked_at)
        self.received += count
        self.left -= count
        self.pulls += self.left == 0

    @staticmethod
    def _some(data: bytes) -> bytes:
        if not data:
            raise SystemExit("closed before an answer")
        return data


def pull(orders: Orders) -> dict[str, float]:
    """Pull; returns seconds, bytes, pulls, and the latest first byte of a body."""
    poll = select.epoll()
    clients: dict[int, Client] = {}
    began = time.monotonic()
    for number in range(orders.clients):
        client = _connected(orders.ports[number % len(orders.ports)], orders.path)
        clients[client.connection.fileno()] = client
        poll.register(client.connection, select.EPOLLIN)
    busy = len(clients)
    while busy:
        ready = poll.poll(_PATIENCE_SECONDS)
        if not ready:
            raise SystemExit(f"no data for {_PATIENCE_SECONDS:g} s")
        for number, _ in ready:
            client = clients[number]
            client.read()
            if client.left == 0:
                if time.monotonic() - began < orders.seconds:
                    client.ask()
                else:
                    poll.unregister(client.connection)
                    client.connection.close()
                    busy -= 1
    return {
        "seconds": time.monotonic() - began,
        "bytes": sum(client.received for client in clients.values()),
        "pulls": sum(client.pulls for client in clients.values()),
        "first_byte": max(max(client.first_bytes) for client in clients.values()),
    }


def _connected(port: int, path: str) -> Client:
    connection = socket.create_connection(("127.0.0.1", port))
    lines = [f"GET {path} HTTP/1.1", f"Host: 127.0.0.1:{port}", f"Accept: {ACCEPT}"]
    client = Client(connection, "".join(f"{line}\r\n" for line in (*lines, "")).encode())
    client.ask()
    connection.setblocking(False)
    return client


if __name__ == "__main__":
    print(json.dumps(pull(Orders(**json.loads(sys.argv[1])))))
