"""Listening as an operator sets it up: curl on a unix socket, systemd opening the port."""

import socket
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

import pytest

from tests.peers.process import Process, accepts, free_port
from tests.peers.requirements import need
from tests.waiting import LIMIT_SECONDS

pytestmark = [pytest.mark.e2e, pytest.mark.long]

MIRROR = [sys.executable, "-m", "mirror"]


def arguments(directory: Path) -> list[str]:
    file = directory / "mirror.toml"
    file.write_text(
        '[server]\nlame_duck = "0s"\ndrain = "1s"\n'
        f'[cache]\ndirectory = "{directory}/cache"\nmin_free = "0"\n'
        '[upstreams."docker.io"]\nurl = "http://127.0.0.1:9"\n'
    )
    return [*MIRROR, "serve", "--config", str(file)]


def curl(path: Path, url: str = "http://localhost/v2/") -> str:
    command = [
        "curl",
        "-sS",
        "-i",
        "--max-time",
        str(LIMIT_SECONDS),
        "--unix-socket",
        str(path),
        url,
    ]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def answers(port: int) -> int:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/", timeout=LIMIT_SECONDS) as response:
        return int(response.status)


def test_curl_on_a_unix_socket_beside_a_port_that_is_told_first(tmp_path):
    need("curl")
    port, path = free_port(), tmp_path / "m.sock"
    command = arguments(tmp_path)
    command += ["--listen", f"127.0.0.1:{port}", "--listen", f"unix:{path}"]
    mirror = Process(command, tmp_path / "log")
    mirror.wait_until(lambda: "/metrics" in mirror.output())
    assert curl(path).startswith("HTTP/1.1 200 OK")
    assert answers(port) == 200
    assert mirror.terminate() == 0
    assert f"listens on 127.0.0.1:{port}, unix:{path} for docker.io (default)" in mirror.output()
    assert f'"registry-mirrors": ["http://127.0.0.1:{port}"]' in mirror.output()
    assert not path.exists()


def test_a_socket_left_by_a_killed_mirror_is_taken_over(tmp_path):
    need("curl")
    path = tmp_path / "m.sock"

    def listens() -> bool:
        return "/metrics" in mirror.output()

    for _ in range(2):
        mirror = Process([*arguments(tmp_path), "--listen", f"unix:{path}"], tmp_path / "log")
        mirror.wait_until(listens)
        assert curl(path).startswith("HTTP/1.1 200 OK")
        assert f"curl --unix-socket {path} http://localhost/metrics" in mirror.output()
        mirror.kill()
        assert path.is_socket()


# Socket activation.


def test_systemd_opens_the_port_and_the_socket(tmp_path):
    need("systemd-socket-activate", "curl")
    port, path = free_port(), tmp_path / "m.sock"
    systemd = ["systemd-socket-activate", "-l", str(port), "-l", str(path), "--fdname=http:local"]
    systemd += [f"--setenv=PYTHONPATH={Path.cwd()}"]
    ignored = free_port()
    command = [*systemd, *arguments(tmp_path), "--listen", f"127.0.0.1:{ignored}"]
    mirror = Process(command, tmp_path / "log")
    mirror.wait_until(lambda: "Listening on" in mirror.output() and path.exists())
    assert answers(port) == 200  # the connection starts it, and waits
    assert curl(path).startswith("HTTP/1.1 200 OK")
    assert not accepts(ignored)
    assert f"listens on :{port}, unix:{path} for docker.io" in mirror.output()
    assert mirror.terminate() == 0
    assert path.exists(), "it is systemd's"


@pytest.mark.parametrize("descriptor", ["3</dev/null", "3<&0", "3<&-"])
def test_a_descriptor_that_is_no_socket_is_one_line_and_exit_1(tmp_path, descriptor):
    script = f'export LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=web; exec "$@" {descriptor}'
    ours, theirs = socket.socketpair()  # connected, as Accept=yes passes
    with ours, theirs:
        done = subprocess.run(
            ["bash", "-c", script, "bash", *arguments(tmp_path)],
            stdin=theirs.fileno(), capture_output=True, text=True, check=False,
            timeout=LIMIT_SECONDS,
        )  # fmt: skip
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("mirror: systemd passed a file descriptor (3, web) that is not a listen")


def test_sockets_for_another_process_are_left_alone(tmp_path, monkeypatch):
    port = free_port()
    monkeypatch.setenv("LISTEN_PID", "1")
    monkeypatch.setenv("LISTEN_FDS", "1")
    mirror = Process([*arguments(tmp_path), "--listen", f"127.0.0.1:{port}"], tmp_path / "log")
    mirror.wait_until(lambda: accepts(port))
    assert mirror.terminate() == 0


# What systemd is told.


@pytest.mark.parametrize("abstract", [False, True])
def test_systemd_hears_that_it_is_ready_that_it_lives_and_that_it_stops(
    tmp_path, monkeypatch, abstract
):
    place = f"@mirror-test-{free_port()}" if abstract else str(tmp_path / "notify")
    said: list[str] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind("\0" + place[1:] if abstract else place)
        systemd.settimeout(LIMIT_SECONDS)
        monkeypatch.setenv("NOTIFY_SOCKET", place)
        monkeypatch.setenv("WATCHDOG_USEC", "100000")
        mirror = Process([*arguments(tmp_path), "--listen", "127.0.0.1:0"], tmp_path / "log")
        while "READY=1" not in said or said[-3:] != ["WATCHDOG=1"] * 3:
            said.append(systemd.recv(4096).decode())
        ending = threading.Thread(target=mirror.terminate)
        ending.start()
        while said[-1] != "STOPPING=1":
            said.append(systemd.recv(4096).decode())
        ending.join()
    assert said.count("READY=1") == 1
