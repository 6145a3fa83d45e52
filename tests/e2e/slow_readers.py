"""Many slow clients in one cheap process: ``python -m tests.e2e.slow_readers '{"port": ...}'``.

Their bytes are discarded in the kernel (``MSG_TRUNC``, tcp(7)), so that what is measured beside
them is the mirror and not them.  Prints ``ready`` when each has its first bytes, and on SIGTERM
what they got.
"""

import json
import math
import resource
import signal
import socket
import sys
import time
from dataclasses import dataclass, field

from tests.waiting import LIMIT_SECONDS

_TICK = 0.1  # seconds between two looks at all connections
_DEBT = 2.0  # ticks: a reader that fell behind does not catch up faster than this
_MOST_SECONDS = 900.0  # if no test ends it
_HEADERS = 4096
_DISCARD = bytearray(1 << 20)


@dataclass(frozen=True)
class Orders:
    """What the connections do; times in seconds, ``rate`` in bytes a second for each."""

    port: int
    path: str = ""
    readers: int = 0
    rate: float = 0.0
    idle: int = 0
    loris: int = 0
    window: int = 256 * 1024


@dataclass
class Reader:
    """One connection and how far it is."""

    connection: socket.socket
    due: float = 0.0
    received: int = 0
    closed: bool = False


@dataclass
class Crowd:
    """All connections of this process."""

    orders: Orders
    readers: list[Reader] = field(default_factory=list)
    idle: list[socket.socket] = field(default_factory=list)
    loris: list[socket.socket] = field(default_factory=list)
    stopped: bool = False

    def stop(self, *_: object) -> None:
        self.stopped = True

    def open(self) -> None:
        orders = self.orders
        request = f"GET {orders.path} HTTP/1.1\r\nHost: mirror\r\n\r\n".encode()
        self.readers = [Reader(self._connect(request)) for _ in range(orders.readers)]
        self.idle = [self._connect(b"") for _ in range(orders.idle)]
        self.loris = [self._connect(b"GET /v2/ HTTP/1.1\r\nX-Slow: ") for _ in range(orders.loris)]
        for reader in self.readers:
            # The answer has begun: a byte and whatever of the headers came with it.
            reader.received = len(reader.connection.recv(min(_HEADERS, math.ceil(orders.rate))))
        for one in (*(reader.connection for reader in self.readers), *self.idle, *self.loris):
            one.setblocking(False)

    def run(self) -> None:
        """Until SIGTERM, or for a quarter of an hour."""
        ends = time.monotonic() + _MOST_SECONDS
        last, last_byte = time.monotonic(), 0.0
        while not self.stopped and (now := time.monotonic()) < ends:
            self._read(min(now - last, _DEBT * _TICK) * self.orders.rate)
            if now - last_byte >= 1:
                last_byte = now
                self._dribble()
            last = now
            time.sleep(max(0.0, _TICK - (time.monotonic() - now)))

    def _connect(self, first: bytes) -> socket.socket:
        connection = socket.socket()
        if self.orders.window:
            # Before connecting, or the kernel would take in far more than was read.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self.orders.window)
        connection.settimeout(LIMIT_SECONDS)
        connection.connect(("127.0.0.1", self.orders.port))
        connection.sendall(first)
        return connection

    def _read(self, allowance: float) -> None:
        for reader in self.readers:
            reader.due = min(reader.due + allowance, _DEBT * max(allowance, 1.0))
            if reader.closed or reader.due < 1:
                continue
            try:
                got = reader.connection.recv_into(_DISCARD, int(reader.due), socket.MSG_TRUNC)
            except BlockingIOError:
                continue
            except ConnectionError:
                got = 0
            reader.closed = got == 0
            reader.due -= got
            reader.received += got

    def _dribble(self) -> None:
        for one in self.loris:
            try:
                one.send(b"x")
            except OSError:  # told to go: nothing to prove here
                continue


def main() -> None:
    """Obey the orders given as JSON."""
    orders = Orders(**json.loads(sys.argv[1]))
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    crowd = Crowd(orders)
    signal.signal(signal.SIGTERM, crowd.stop)
    crowd.open()
    print("ready", flush=True)
    began = time.monotonic()
    crowd.run()
    received = sorted(reader.received for reader in crowd.readers) or [0]
    report = {
        "seconds": time.monotonic() - began,
        "total": sum(received),
        "least": received[0],
        "median": received[len(received) // 2],
        "closed": sum(reader.closed for reader in crowd.readers),
        "cpu": time.process_time(),
    }
    print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
