"""Threads are there from the start, and work never uses a descriptor that its caller has closed."""

import asyncio
import os
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import wait
from pathlib import Path

import pytest

from mirror.descriptor import Descriptor
from mirror.threads import Threads, run
from mirror.user_error import UserError
from tests.peers.requirements import need
from tests.waiting import LIMIT_SECONDS


def refuse_threads(monkeypatch: pytest.MonkeyPatch, *, after: int = 0) -> None:
    """Have the system refuse threads, as under a pids limit."""
    left, start = [after], threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if not left[0]:
            raise RuntimeError("can't start new thread")
        left[0] -= 1
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)


def test_work_needs_no_further_thread(monkeypatch):
    with Threads(4, "some") as threads:
        refuse_threads(monkeypatch)
        barrier = threading.Barrier(4)
        assert (
            len({each.result() for each in [threads.submit(barrier.wait) for _ in range(4)]}) == 4
        )


@pytest.mark.parametrize("after", [0, 1, 3])
def test_where_the_system_refuses_one_thread_none_is_left_and_one_line_says_so(monkeypatch, after):
    before = threading.active_count()
    refuse_threads(monkeypatch, after=after)
    with pytest.raises(UserError, match=rf"thread {after + 1} of 4 \(some\).*--pids-limit"):
        Threads(4, "some")
    assert threading.active_count() == before


def test_a_loop_resolves_names_and_runs_work_without_further_threads(monkeypatch):
    async def main() -> int:
        refuse_threads(monkeypatch)
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo("localhost", 80)
        return len(found) + await asyncio.to_thread(lambda: 1)

    before = threading.active_count()
    assert run(main()) > 1
    assert threading.active_count() == before


def test_what_is_cancelled_before_its_turn_is_never_done():
    done, go = list[int](), threading.Event()
    with Threads(1, "one") as threads:
        busy = threads.submit(go.wait)
        later = threads.submit(done.append, 1)
        assert later.cancel()
        go.set()
        wait([busy])
    assert not done


def test_work_that_waits_does_not_read_the_file_that_got_its_number(tmp_path):
    """What a caller closed meanwhile: another file has the number by then."""
    tmp_path.joinpath("own").write_bytes(b"own")
    tmp_path.joinpath("private").write_bytes(b"private")
    go = threading.Event()

    def read(file: Descriptor) -> bytes:
        with file as number:
            return os.pread(number, 100, 0)

    with Threads(1, "one") as threads:
        threads.submit(go.wait)
        file = Descriptor(os.open(tmp_path / "own", os.O_RDONLY))
        work = threads.submit(read, file)
        file.close()
        other = os.open(tmp_path / "private", os.O_RDONLY)
        assert other == file.fileno(), "the system gives out the lowest number"
        go.set()
        with pytest.raises(OSError, match="closed before its turn"):
            work.result()
        os.close(other)


def test_a_file_stays_open_until_its_last_use_has_ended(tmp_path):
    tmp_path.joinpath("own").write_bytes(b"own")
    closed: list[int] = []
    file = Descriptor(os.open(tmp_path / "own", os.O_RDONLY), closed.append)
    with file as number, file:
        file.close()
        assert os.pread(number, 100, 0) == b"own"
        assert not closed
    assert closed == [number]
    file.close()
    assert closed == [number]
    os.close(number)


@pytest.mark.long
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits are Linux's")
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.slow
def test_a_mirror_that_gets_no_threads_says_so_in_one_line(workers):
    """RLIMIT_NPROC counts what a user has; root is exempt, so root becomes another one."""
    need("prlimit", "setpriv")
    with tempfile.TemporaryDirectory() as name:  # that user must be able to come here
        directory = Path(name)
        directory.chmod(0o777)
        limits = ["prlimit", "--nproc=6"]
        if os.getuid() == 0:
            user, reading = str(200_000 + os.getpid() % 100_000), "+dac_read_search"
            become = ["setpriv", "--reuid", user, "--clear-groups", f"--inh-caps={reading}"]
            limits = [*become, f"--ambient-caps={reading}", *limits]
        mirror = [sys.executable, "-m", "mirror", "serve", "--listen", "127.0.0.1:0"]
        options = ["--cache-dir", str(directory / "cache"), "--workers", str(workers)]
        done = subprocess.run(
            [*limits, *mirror, *options],
            capture_output=True,
            text=True,
            timeout=LIMIT_SECONDS,
            check=False,
            env={name: value for name, value in os.environ.items() if not name.startswith("COV")},
        )
    assert done.returncode == 1, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("mirror: the system refuses thread ")
    assert "--pids-limit" in line
