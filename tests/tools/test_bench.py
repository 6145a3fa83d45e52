"""The clients of `make bench`, and what its table says about a figure."""

from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from tools.bench.comparison import Gate, Result, surely_at_most
from tools.bench.downloads import Orders, pull
from tools.bench.table import table


@pytest.mark.parametrize(
    ("ratios", "verdict"),
    [
        ([0.98, 0.99, 1.0, 1.0, 1.01, 1.02], "| yes |"),
        ([1.05, 1.06, 1.06, 1.08, 1.09, 1.2], "| **no** |"),
        ([0.8, 0.9, 1.0, 1.02, 1.1, 1.2], "| unclear |"),
        # One disturbed round of thirty changes nothing.
        ([1.0] * 29 + [2.0], "| yes |"),
    ],
)
def test_a_small_difference_gets_a_verdict_only_beyond_the_noise(ratios, verdict):
    gate = surely_at_most("CPU", 1.03, ratios)
    assert verdict in table([("rules", "", Result(gates=[gate]))], absent={})


def test_a_peer_that_cannot_be_had_is_named_once_with_the_reason():
    rows = [("small", "", Result(gates=[Gate("", "", met=True)]))] * 2
    assert table(rows, absent={"P4": "no go"}).count("P4 is not here: no go") == 1


class _Server(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        _asked.append(self.connection.getsockname()[1])
        self.send_response(200)
        self.send_header("Content-Length", "3")
        self.end_headers()
        self.wfile.write(b"abc")

    def log_message(self, *_: object) -> None:
        pass


_asked: list[int] = []  # the port of each request


@pytest.mark.slow
def test_clients_are_spread_over_the_servers():
    with ExitStack() as ending:
        ports = []
        for _ in range(3):
            server = ending.enter_context(ThreadingHTTPServer(("127.0.0.1", 0), _Server))
            Thread(target=server.serve_forever, daemon=True).start()
            ending.callback(server.shutdown)
            ports.append(server.server_port)
        pulled = pull(Orders(ports, "/blob", clients=6))
    assert (pulled["pulls"], pulled["bytes"]) == (6, 18)
    assert sorted(_asked) == sorted(2 * ports)
