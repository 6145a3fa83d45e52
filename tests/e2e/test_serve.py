"""The program as its user starts and stops it."""

import asyncio
import os
import signal
import socket
import subprocess
import sys

import aiohttp
import pytest

from tests.fakes import random_bytes
from tests.peers.mirror import MirrorProcess
from tests.peers.process import accepts
from tests.waiting import LIMIT_SECONDS, limit, until

pytestmark = [pytest.mark.e2e]

MIB = 1 << 20


def serve(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "mirror", "serve", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False
    )


async def test_it_says_where_it_listens_and_how_to_point_docker_there(tmp_path, upstream):
    mirror = MirrorProcess(tmp_path, {"docker.io": upstream.url})
    await asyncio.to_thread(mirror.start)
    await until(lambda: "listens on" in mirror.output())
    assert await asyncio.to_thread(mirror.terminate) == 0
    output = mirror.output()
    assert f"listens on 127.0.0.1:{mirror.port} for docker.io (default)" in output
    assert f'{{"registry-mirrors": ["{mirror.url}"]}}' in output


@pytest.mark.long
async def test_sigterm_finishes_what_is_being_sent_and_sigkill_loses_nothing_whole(
    tmp_path, upstream
):
    data = random_bytes(16 * MIB)
    digest = upstream.add_blob(data)
    upstream.hold(MIB)
    mirror = MirrorProcess(tmp_path, {"docker.io": upstream.url})
    await asyncio.to_thread(mirror.start)
    url = f"{mirror.url}/v2/library/app/blobs/{digest}"
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        stopping = asyncio.create_task(asyncio.to_thread(mirror.terminate))
        await until(lambda: not accepts(mirror.port))
        upstream.release()
        assert await response.read() == data
    assert await stopping == 0

    await asyncio.to_thread(mirror.start)
    mirror.kill()
    await upstream.stop()
    await asyncio.to_thread(mirror.start)
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        assert await response.read() == data
    await asyncio.to_thread(mirror.terminate)
    await upstream.start()


@pytest.mark.long
@pytest.mark.parametrize("workers", [1, 2])
async def test_after_sigterm_whole_pulls_finish_and_a_second_one_ends_at_once(
    tmp_path, upstream, workers
):
    digest, held = upstream.add_blob(b"first layer"), upstream.add_blob(random_bytes(16 * MIB))
    mirror = MirrorProcess(
        tmp_path, {"docker.io": upstream.url}, workers=workers, server='lame_duck = "1h"'
    )
    await asyncio.to_thread(mirror.start)

    async def is_out_of_rotation() -> bool:
        async with aiohttp.ClientSession() as session, session.get(f"{mirror.url}/readyz") as asked:
            return asked.status == 503

    os.kill(mirror.pid, signal.SIGTERM)
    async with limit():
        while not await is_out_of_rotation():
            await asyncio.sleep(0.02)
    async with aiohttp.ClientSession() as session:
        async with session.get(f"{mirror.url}/v2/library/app/blobs/{digest}") as response:
            assert await response.read() == b"first layer"
        upstream.hold(MIB)
        async with session.get(f"{mirror.url}/v2/library/app/blobs/{held}") as response:
            os.kill(mirror.pid, signal.SIGTERM)
            with pytest.raises(aiohttp.ClientError):
                await response.read()
    code = await asyncio.to_thread(mirror.wait)
    assert code == (128 + signal.SIGTERM if workers == 1 else 0)
    assert "/readyz answers 503; clients may connect for 1h more" in mirror.output()
    assert mirror.output().count("stopped at once by a second signal") == 1


@pytest.mark.long
@pytest.mark.parametrize("workers", [1, 2])
async def test_ctrl_c_waits_for_no_more_clients(tmp_path, upstream, workers):
    mirror = MirrorProcess(
        tmp_path, {"docker.io": upstream.url}, workers=workers, server='lame_duck = "1h"'
    )
    await asyncio.to_thread(mirror.start)
    os.kill(mirror.pid, signal.SIGINT)
    assert await asyncio.to_thread(mirror.wait) == 0


@pytest.mark.long
async def test_a_killed_mirror_goes_on_from_what_had_arrived(tmp_path, upstream):
    data = random_bytes(32 * MIB)
    digest = upstream.add_blob(data)
    upstream.hold(16 * MIB)
    mirror = MirrorProcess(tmp_path, {"docker.io": upstream.url})
    await asyncio.to_thread(mirror.start)
    url = f"{mirror.url}/v2/library/app/blobs/{digest}"
    async with aiohttp.ClientSession() as session:
        async with session.get(url) as response:
            await response.content.readexactly(12 * MIB)
            mirror.kill()
            with pytest.raises(aiohttp.ClientError):
                await response.read()
        upstream.release()
        await asyncio.to_thread(mirror.start)
        async with session.get(url) as response:
            assert await response.read() == data
    await asyncio.to_thread(mirror.terminate)
    asked = upstream.seen[-1].headers["Range"].removeprefix("bytes=").partition("-")[0]
    assert 12 * MIB <= int(asked) <= 16 * MIB


@pytest.mark.long
def test_a_port_that_is_taken_is_one_line_and_exit_1(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"127.0.0.1:{taken.getsockname()[1]}"
        done = serve("--listen", listen, "--cache-dir", str(tmp_path))
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"mirror: cannot listen on {listen}: ")
    assert "--listen" in line


@pytest.mark.long
def test_a_cache_directory_that_cannot_be_used_is_one_line_and_exit_1(tmp_path):
    file = tmp_path / "file"
    file.touch()
    done = serve("--listen", "127.0.0.1:0", "--cache-dir", str(file / "cache"))
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "--cache-dir" in line


@pytest.mark.long
def test_mistakes_in_the_configuration_are_a_line_each_and_exit_2(tmp_path):
    file = tmp_path / "mirror.toml"
    file.write_text('[server]\nlisen = ":1"\n[cache]\nmax_size = "lots"\n')
    done = serve("--config", str(file))
    assert done.returncode == 2
    one, two = sorted(done.stderr.splitlines())
    assert str(file) in one
    assert "cache.max_size" in one
    assert "lots" in one
    assert "server.lisen" in two
    assert "listen" in two
