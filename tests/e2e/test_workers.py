"""Several worker processes on one port and one cache directory."""

import asyncio
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import pytest

from mirror.http.token import create_token
from mirror.stats.queries import read_report
from tests.fakes import FakeRegistry, image, random_bytes
from tests.fakes.content import digest_of
from tests.peers.mirror import MirrorProcess
from tests.peers.process import free_port
from tests.waiting import LIMIT_SECONDS, limit, until

pytestmark = [pytest.mark.e2e]

MIB = 1 << 20
BLOB = "/v2/library/app/blobs/"


@contextmanager
def started(
    directory: Path, upstream: str, server: str = "", extra: str = ""
) -> Iterator[MirrorProcess]:
    upstreams = {"docker.io": upstream}
    mirror = MirrorProcess(directory, upstreams, extra, workers=3, measured=False, server=server)
    mirror.start()
    try:
        yield mirror
    finally:
        mirror.kill()


def workers_of(mirror: MirrorProcess) -> list[int]:
    return [int(pid) for pid in children(mirror.pid) if not gone(int(pid))]


def children(pid: int) -> list[str]:
    with contextlib.suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return []


def gone(pid: int) -> bool:
    """Whether a process has ended; nobody may have asked for its exit code yet."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return True


async def get(url: str) -> bytes:
    """A connection of its own: the system spreads connections, not requests."""
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        assert response.status == 200
        return await response.read()


@pytest.mark.long
async def test_a_crowd_spread_over_workers_costs_one_download(tmp_path):
    data = random_bytes(16 * MIB)
    async with FakeRegistry() as upstream:
        digest = upstream.add_blob(data)
        upstream.hold(MIB)
        with started(tmp_path, upstream.url) as mirror:
            assert len(workers_of(mirror)) == 3
            asking = [asyncio.create_task(get(mirror.url + BLOB + digest)) for _ in range(24)]
            async with limit():
                while (await asyncio.to_thread(mirror.metrics))["mirror_clients_waiting"] < 24:
                    await asyncio.sleep(0.05)
            upstream.release()
            got = await asyncio.gather(*asking)
            assert {digest_of(each) for each in got} == {digest}
            assert upstream.sent[digest] == len(data)
            again = await asyncio.gather(*(get(mirror.url + BLOB + digest) for _ in range(24)))
            assert {digest_of(each) for each in again} == {digest}
            figures = await asyncio.to_thread(mirror.metrics)
    asked = {
        name.partition('result="')[2].partition('"')[0]: value
        for name, value in figures.items()
        if name.startswith("mirror_requests_total") and 'kind="blob"' in name
    }
    assert asked == {"miss": 1, "coalesced": 23, "hit": 24}
    assert figures['mirror_fills_total{result="stored",upstream="docker.io"}'] == 1
    assert figures["mirror_fills_in_progress"] == 0
    assert figures["mirror_cache_objects"] == 1


@pytest.mark.long
async def test_a_worker_that_dies_is_replaced_and_the_others_go_on(tmp_path):
    data = random_bytes(8 * MIB)
    async with FakeRegistry() as upstream:
        digest = upstream.add_blob(data)
        with started(tmp_path, upstream.url) as mirror:
            url = mirror.url + BLOB + digest
            await get(url)
            async with limit():  # it is stored a moment after the client has it
                while not (await asyncio.to_thread(mirror.metrics))["mirror_cache_objects"]:
                    await asyncio.sleep(0.05)
            before = workers_of(mirror)
            broken = 0

            def is_replaced() -> bool:
                return victim not in workers_of(mirror)

            for victim in before:
                load = [asyncio.create_task(get(url)) for _ in range(12)]
                await asyncio.sleep(0.01)
                os.kill(victim, signal.SIGKILL)
                ended = await asyncio.gather(*load, return_exceptions=True)
                broken += sum(isinstance(each, BaseException) for each in ended)
                assert all(isinstance(each, Exception) or each == data for each in ended)
                await until(is_replaced)
                assert await get(url) == data, "whoever comes waits at most for the new worker"
            await until(lambda: len(workers_of(mirror)) == 3)
            assert not set(workers_of(mirror)) & set(before)
            assert broken < 36, "what another worker sends is not touched"
            figures = await asyncio.to_thread(mirror.metrics)
            assert figures['mirror_requests_total{kind="blob",result="miss",upstream="docker.io"}']
            assert "another one starts" in mirror.output()
            assert figures["mirror_workers_replaced_total"] == 3
            memory = 'process_resident_memory_bytes{worker="%s"}'
            assert all(figures[memory % name] > 0 for name in ("0", "1", "2", "supervisor"))
            assert figures["mirror_connections"] >= 1
    assert upstream.sent[digest] == len(data)


@pytest.mark.long
@pytest.mark.parametrize("delay", [0.0, 0.1, 0.3])
async def test_a_worker_that_just_starts_does_not_outlive_the_first_process(tmp_path, delay):
    with started(tmp_path, "http://127.0.0.1:9") as mirror:
        before = workers_of(mirror)
        os.kill(before[0], signal.SIGKILL)
        await until(lambda: set(workers_of(mirror)) - set(before))
        workers = workers_of(mirror)
        await asyncio.sleep(delay)  # the new worker is not ready yet
        await asyncio.to_thread(mirror.kill)
        await until(lambda: all(gone(worker) for worker in workers))


@pytest.mark.long
async def test_a_worker_names_the_traces_that_it_has_collected(tmp_path):
    trace = "0af7651916cd43dd8448eb211c80319c"
    fields = {"traceparent": f"00-{trace}-b7ad6b7169203331-01"}
    accept = {"Accept": "application/openmetrics-text"}
    async with FakeRegistry() as upstream, aiohttp.ClientSession() as session:
        digest = upstream.add_blob(random_bytes(1000))
        extra = '[tracing]\nendpoint = "http://127.0.0.1:9/v1/traces"\n'
        with started(tmp_path, upstream.url, extra=extra) as mirror:
            async with session.get(mirror.url + BLOB + digest, headers=fields) as answer:
                await answer.read()
            # The same connection, so the same worker.
            async with session.get(mirror.url + "/metrics", headers=accept) as answer:
                text = await answer.text()
    buckets = [line for line in text.splitlines() if f'# {{trace_id="{trace}"}}' in line]
    assert {line.partition("_bucket{")[0] for line in buckets} == {
        *("mirror_request_seconds", "mirror_transfer_seconds", "mirror_upstream_request_seconds")
    }


@pytest.mark.long
async def test_a_worker_that_hangs_is_replaced(tmp_path):
    data = random_bytes(MIB)
    async with FakeRegistry() as upstream:
        digest = upstream.add_blob(data)
        with started(tmp_path, upstream.url, 'worker_timeout = "6s"') as mirror:
            before = workers_of(mirror)
            os.kill(before[1], signal.SIGSTOP)
            await until(lambda: gone(before[1]))
            await until(lambda: len(workers_of(mirror)) == 3)
            assert before[1] not in workers_of(mirror)
            got = await asyncio.gather(*(get(mirror.url + BLOB + digest) for _ in range(9)))
            assert set(got) == {data}
            told = [line for line in mirror.output().splitlines() if "hung" in line]
    hung = f"worker 1 (pid {before[1]}) has hung for more than 6s, and is killed"
    assert sum(hung in line for line in told) == 1


@pytest.mark.long
async def test_an_orderly_stop_ends_all_of_it(tmp_path):
    async with FakeRegistry() as upstream:
        with started(tmp_path, upstream.url) as mirror:
            workers = workers_of(mirror)
            assert await asyncio.to_thread(mirror.terminate) == 0
            assert all(gone(pid) for pid in workers)


@pytest.mark.long
async def test_no_worker_outlives_the_first_process(tmp_path):
    async with FakeRegistry() as upstream:
        with started(tmp_path, upstream.url) as mirror:
            workers = workers_of(mirror)
            mirror.kill()
            await until(lambda: all(gone(pid) for pid in workers))


@pytest.mark.long
def test_a_port_that_is_in_use_is_said_in_one_line(tmp_path):
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        place = f"127.0.0.1:{taken.getsockname()[1]}"
        command = [sys.executable, "-m", "mirror", "serve", "--listen", place, "--workers", "2"]
        command += ["--cache-dir", str(tmp_path)]
        ended = subprocess.run(
            command, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False
        )
    assert ended.returncode == 1
    assert ended.stderr == (
        f"mirror: cannot listen on {place}: Address already in use; choose another with --listen\n"
    )


@pytest.mark.long
@pytest.mark.parametrize("name", ["file", "x" * 300])
def test_a_cache_directory_that_cannot_be_used_is_said_in_one_line(tmp_path, name):
    (tmp_path / "file").write_text("")
    place = f"127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "mirror", "serve", "--listen", place, "--workers", "2"]
    command += ["--cache-dir", str(tmp_path / name)]
    ended = subprocess.run(
        command, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False
    )
    assert ended.returncode == 1
    assert ended.stderr.startswith("mirror: the cache directory ")
    assert ended.stderr.count("\n") == 1


async def live(mirror: MirrorProcess) -> set[bytes]:
    """The figures of the status page, asked for often enough that every worker is."""
    pages = [await get(f"{mirror.url}/live") for _ in range(20)]
    figures = [page.partition(b"Recent pulls")[0] for page in pages]
    return {re.sub(rb"<time.*?</time>", b"", each) for each in figures}


@pytest.mark.long
async def test_the_status_page_is_the_same_whichever_worker_answers(tmp_path):
    app = image(random_bytes(100_000), random_bytes(50_000, seed=1))
    async with FakeRegistry() as upstream:
        upstream.add_image("library/app", app, "1")
        with started(tmp_path, upstream.url) as mirror:
            for _ in range(8):
                await get(f"{mirror.url}/v2/library/app/manifests/1")
                for digest in app.digests:
                    await get(mirror.url + BLOB + digest)
            async with limit():  # each writes within a second, and is asked by chance
                while len(told := await live(mirror)) > 1 or b"of 32 requests" not in min(told):
                    await asyncio.sleep(0.1)
            for _ in range(12):
                assert b"Hit rate 87.5 %" in await get(mirror.url)
        state = read_report(tmp_path / "cache" / "ledger", time.time())
    (pull,) = state.recent
    assert (pull.times, pull.sent_bytes) == (8, 8 * (len(app.manifest) + sum(map(len, app.blobs))))
    assert (state.total.answered, state.total.spared) == (32, 28)


@pytest.mark.long
async def test_the_trouble_of_one_worker_is_seen_whichever_worker_answers(tmp_path):
    async with FakeRegistry() as upstream:
        with started(tmp_path, upstream.url) as mirror:
            await upstream.stop()
            tag = f"{mirror.url}/v2/library/app/manifests/1"
            async with aiohttp.ClientSession() as session, session.get(tag) as answer:
                assert answer.status == 502  # one connection: one worker meets it
            async with limit():
                while not all(b"does not answer" in text for text in await lives(mirror)):
                    await asyncio.sleep(0.2)


async def lives(mirror: MirrorProcess) -> list[bytes]:
    """The page as new connections see it, which the system spreads over the workers."""
    return [await get(f"{mirror.url}/live") for _ in range(12)]


@pytest.mark.long
async def test_what_is_dropped_by_http_is_forgotten_by_all_workers(tmp_path):
    async with FakeRegistry() as upstream:
        app = image(random_bytes(1000))
        upstream.add_image("library/app", app, "1")
        with started(tmp_path, upstream.url) as mirror:
            token = create_token(tmp_path / "cache" / "control" / "token")
            tag, blob = f"{mirror.url}/v2/library/app/manifests/1", f"{mirror.url}{BLOB}"
            for _ in range(12):
                assert await get(tag) == app.manifest
                assert await get(blob + app.digests[1]) == app.blobs[1]
            async with (
                aiohttp.ClientSession(headers={"X-Mirror-Token": token}) as session,
                session.post(f"{mirror.url}/api/v1/drop", json={"image": "app:1"}) as answer,
            ):
                assert (await answer.json())["objects"] == 2
            await upstream.stop()
            for _ in range(12):
                for url in (tag, blob + app.digests[1]):
                    async with aiohttp.ClientSession() as session, session.get(url) as answer:
                        assert answer.status == 502
