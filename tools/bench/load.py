"""Runs the clients, and reports the resources of the server.

All servers get the same clients, each in its own process: ``wrk`` for many small responses (one
thread; it can saturate nginx, so the client is not the bottleneck), ``downloads`` for large ones.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tools.bench.corpus import ACCEPT
from tools.bench.processes import cpu_seconds, settled_cpu_seconds
from tools.bench.servers import Answering

Sample = dict[str, float]

_SCRIPT = Path(__file__).with_name("wrk.lua")
_GIB = 1 << 30
_LIMIT_SECONDS = 300


class ClientError(Exception):
    """A client did not get the response that it asked for."""


def downloads(server: Answering, path: str, clients: int = 1, seconds: float = 0) -> Sample:
    """``clients`` clients pull a path, once, or repeatedly for some seconds.

    ``rate`` in GB/s, ``cpu`` in seconds, ``cpu_gib`` per GiB, ``first_byte`` in ms.
    """
    before = cpu_seconds(server.pid)
    sample = _run("downloads", port=server.port, path=path, clients=clients, seconds=seconds)
    cpu = settled_cpu_seconds(server.pid) - before
    return sample | {
        "rate": sample["bytes"] / sample["seconds"] / 1e9,
        "first_byte": sample["first_byte"] * 1000,
        "cpu": cpu,
        "cpu_gib": cpu / (sample["bytes"] / _GIB),
    }


def requests(
    server: Answering, paths: Sequence[str], listing: Path, seconds: int, connections: int = 32
) -> Sample:
    """Many clients request small objects; ``listing`` is a file that may be overwritten.

    ``rate`` in requests/s, ``p50`` and ``p99`` in ms, ``cpu_request`` in us.
    """
    listing.write_text("\n".join(paths) + "\n")
    command = ["wrk", "--threads=1", f"--connections={connections}", f"--duration={seconds}"]
    command += ["--timeout=30s", f"--script={_SCRIPT}", f"http://127.0.0.1:{server.port}"]
    before = cpu_seconds(server.pid)
    sample = _reported([*command, "--", str(listing), ACCEPT])
    cpu = cpu_seconds(server.pid) - before
    if sample["errors"]:
        raise ClientError(f"{sample['errors']:g} of {sample['requests']:g} requests failed")
    return sample | {
        "rate": sample["requests"] / sample["seconds"],
        "cpu_request": 1e6 * cpu / sample["requests"],
    }


def pings_beside_downloads(server: Answering, small: str, large: str, seconds: float) -> Sample:
    """Latency of a small response during the pull of a large one: ``p99``, ``max`` in ms."""
    orders = {"port": server.port, "path": large, "seconds": seconds + 1}
    with subprocess.Popen(_command("downloads", orders), stdout=subprocess.PIPE) as puller:
        try:
            sample = _run("pings", port=server.port, path=small, seconds=seconds)
            if puller.poll() is not None:
                raise ClientError("the download ended before the pings")
            return sample
        finally:
            puller.terminate()


def _run(module: str, **orders: object) -> Sample:
    return _reported(_command(module, orders))


def _command(module: str, orders: dict[str, object]) -> list[str]:
    return [sys.executable, "-m", f"tools.bench.{module}", json.dumps(orders)]


def _reported(command: list[str]) -> Sample:
    """The last line of a client's output, as JSON."""
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=_LIMIT_SECONDS, check=False
    )
    if done.returncode:
        raise ClientError(f"{' '.join(command)}: {done.stderr.strip()}")
    return dict(json.loads(done.stdout.splitlines()[-1]))
