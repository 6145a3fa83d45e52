"""Clients that are sent to the object store: ``python -m tools.bench.redirects '{"port": ...}'``.

Each has an address of its own, since a client is sent there once per blob.  One after the other
asks for a path and reads the first byte at the address that it gets.  Prints the result as JSON.
"""

import http.client
import json
import statistics
import sys
import time
from ipaddress import IPv4Address
from urllib.parse import urlsplit

_FIRST_CLIENT = IPv4Address("127.1.0.1")
_PATIENCE_SECONDS = 30


def pull(port: int, path: str, clients: int) -> dict[str, float]:
    """Returns pulls, and the median of the seconds to the first byte of the blob."""
    waits = [_first_byte(port, path, str(_FIRST_CLIENT + number)) for number in range(clients)]
    return {"pulls": len(waits), "first_byte": statistics.median(waits)}


def _first_byte(port: int, path: str, client: str) -> float:
    began = time.monotonic()
    mirror = http.client.HTTPConnection(
        "127.0.0.1", port, timeout=_PATIENCE_SECONDS, source_address=(client, 0)
    )
    mirror.request("GET", path)
    with mirror.getresponse() as answer:
        place = urlsplit(answer.headers.get("Location", ""))
        if answer.status != 307 or not place.hostname:
            raise SystemExit(f"answered {answer.status}")
    mirror.close()
    store = http.client.HTTPConnection(place.hostname, place.port, timeout=_PATIENCE_SECONDS)
    store.request("GET", f"{place.path}?{place.query}")
    with store.getresponse() as answer:
        if answer.status != 200 or not answer.read(1):
            raise SystemExit(f"the object store answered {answer.status}")
    store.close()
    return time.monotonic() - began


if __name__ == "__main__":
    print(json.dumps(pull(**json.loads(sys.argv[1]))))
