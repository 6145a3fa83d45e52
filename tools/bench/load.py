"""Runs the clients, and reports the resources of the server.

All servers get the same clients, each in its own process: ``wrk`` for many small responses (one
thread; it can saturate nginx, so the client is not the bottleneck), ``downloads`` for large ones,
``curl`` for large ones over TLS.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tools.bench.corpus import ACCEPT
from tools.bench.processes import cpu_seconds, settled_cpu_seconds
from tools.bench.servers import Answering

Sample = dict[str, float]

_SCRIPT = Path(__file__).with_name("wrk.lua")
_OPENSSL = Path(__file__).with_name("openssl.cnf")
_REPORT = '{"bytes": %{size_download}, "seconds": %{time_total}}'
_GIB = 1 << 30
_LIMIT_SECONDS = 300


class ClientError(Exception):
    """A client did not get the response that it asked for."""


def downloads(server: Answering, path: str, clients: int = 1, seconds: float = 0) -> Sample:
    """``clients`` clients pull a path, once, or repeatedly for some seconds.

    ``rate`` in GB/s, ``cpu`` in seconds, ``cpu_gib`` per GiB, ``first_byte`` in ms.
    """
    return spread_downloads([server], path, clients, seconds)


def spread_downloads(
    servers: Sequence[Answering], path: str, clients: int, seconds: float = 0
) -> Sample:
    """The same from several servers, which share the clients; their CPU time is added up."""
    before = sum(cpu_seconds(server.pid) for server in servers)
    ports = [server.port for server in servers]
    sample = _run("downloads", ports=ports, path=path, clients=clients, seconds=seconds)
    cpu = sum(settled_cpu_seconds(server.pid) for server in servers) - before
    return sample | {
        "rate": sample["bytes"] / sample["seconds"] / 1e9,
        "first_byte": sample["first_byte"] * 1000,
        "cpu": cpu,
        "cpu_gib": cpu / (sample["bytes"] / _GIB),
    }


def redirected(server: Answering, path: str, clients: int) -> Sample:
    """Clients pull a path one after the other; the server sends them to the object store.

    ``first_byte`` in ms, ``cpu_pull`` of the server in ms.
    """
    before = cpu_seconds(server.pid)
    sample = _run("redirects", port=server.port, path=path, clients=clients)
    cpu = settled_cpu_seconds(server.pid) - before
    return {
        "first_byte": sample["first_byte"] * 1000,
        "cpu_pull": cpu / sample["pulls"] * 1000,
    }


def decrypted(server: Answering, path: str) -> Sample:
    """One client pulls a path once, over TLS if the server has it.

    ``rate`` in GB/s, ``cpu_gib`` in seconds per GiB.
    """
    command = ["curl", "--silent", "--show-error", "--fail", "--insecure", "--http1.1"]
    command += ["--header", f"Accept: {ACCEPT}", "--output", os.devnull, "--write-out", _REPORT]
    before = cpu_seconds(server.pid)
    sample = _reported([*command, f"{server.url}{path}"])
    cpu = settled_cpu_seconds(server.pid) - before
    return {
        "rate": sample["bytes"] / sample["seconds"] / 1e9,
        "cpu_gib": cpu / (sample["bytes"] / _GIB),
    }


def requests(
    server: Answering, paths: Sequence[str], listing: Path, seconds: int, connections: int = 32
) -> Sample:
    """Many clients request small objects; ``listing`` is a file that may be overwritten.

    ``rate`` in requests/s, ``p50`` and ``p99`` in ms, ``cpu_request`` in us, ``per_cpu`` requests
    per second of CPU.
    """
    listing.write_text("\n".join(paths) + "\n")
    command = ["wrk", "--threads=1", f"--connections={connections}", f"--duration={seconds}"]
    command += ["--timeout=30s", f"--script={_SCRIPT}", server.url]
    before = cpu_seconds(server.pid)
    sample = _reported([*command, "--", str(listing), ACCEPT])
    cpu = cpu_seconds(server.pid) - before
    if sample["errors"]:
        raise ClientError(f"{sample['errors']:g} of {sample['requests']:g} requests failed")
    return sample | {
        "rate": sample["requests"] / sample["seconds"],
        "cpu_request": 1e6 * cpu / sample["requests"],
        "per_cpu": sample["requests"] / cpu,
    }


def pings_beside_downloads(server: Answering, small: str, large: str, seconds: float) -> Sample:
    """Latency of a small response during the pull of a large one: ``p99``, ``max`` in ms."""
    orders = {"ports": [server.port], "path": large, "seconds": seconds + 1}
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
        command,
        env=os.environ | {"OPENSSL_CONF": str(_OPENSSL)},
        capture_output=True,
        text=True,
        timeout=_LIMIT_SECONDS,
        check=False,
    )
    if done.returncode:
        raise ClientError(f"{' '.join(command)}: {done.stderr.strip()}")
    return dict(json.loads(done.stdout.splitlines()[-1]))
