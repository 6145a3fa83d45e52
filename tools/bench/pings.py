"""One client with pauses: ``python -m tools.bench.pings '{"port": ..., "path": ..., "seconds":
...}'``.

Requests a small object repeatedly on one connection, with a pause in between: its latency is that
of a client that arrives while others pull.  Prints milliseconds as JSON.
"""

import http.client
import json
import sys
import time

from tools.bench.corpus import ACCEPT

_PAUSE_SECONDS = 0.002


def waits(port: int, path: str, seconds: float) -> list[float]:
    """Seconds until each response was complete, sorted."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    found = []
    ends = time.monotonic() + seconds
    while (asked_at := time.monotonic()) < ends:
        connection.request("GET", path, headers={"Accept": ACCEPT})
        with connection.getresponse() as answer:
            if answer.status != 200:
                raise SystemExit(f"answered {answer.status}")
            answer.read()
        found.append(time.monotonic() - asked_at)
        time.sleep(_PAUSE_SECONDS)
    return sorted(found)


if __name__ == "__main__":
    milliseconds = [1000 * wait for wait in waits(**json.loads(sys.argv[1]))]
    at_99 = milliseconds[int(len(milliseconds) * 0.99)]
    print(json.dumps({"p99": at_99, "max": milliseconds[-1], "pings": len(milliseconds)}))
