"""Several processes on one cache directory: what one downloads, the others read meanwhile."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager

import aiohttp
import pytest

from mirror.pull import fill_reader
from tests.fakes import FakeRegistry, Fault, random_bytes
from tests.fakes.content import digest_of
from tests.peers.mirror import MirrorProcess
from tests.running import Mirror, eventually, running
from tests.waiting import until

pytestmark = [pytest.mark.slow]


BLOB = "/v2/library/app/blobs/"
MIB = 1 << 20


@pytest.fixture
async def slow() -> AsyncIterator[FakeRegistry]:
    async with FakeRegistry(rate=4 * MIB) as upstream:
        yield upstream


@contextmanager
def other_process(tmp_path, upstream: FakeRegistry) -> Iterator[MirrorProcess]:
    process = MirrorProcess(tmp_path, {"docker.io": upstream.url}, measured=False)
    process.start()
    try:
        yield process
    finally:
        process.kill()


@asynccontextmanager
async def half_read(url: str, size: int) -> AsyncIterator[None]:
    """A client that has read half of a blob and wants the rest."""
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        await response.content.readexactly(size // 2)
        yield


async def fetched(mirror: Mirror, digest: str) -> tuple[str, str]:
    """The digest of what came, and how the mirror says it came by it."""
    answer = await mirror.get(BLOB + digest)
    assert answer.status == 200
    return digest_of(answer.body), answer.headers["Cache-Status"]


async def test_upstream_is_asked_once_by_all_processes(tmp_path, slow):
    data = random_bytes(4 * MIB)
    digest = slow.add_blob(data)
    slow.hold(2 * MIB)
    async with AsyncExitStack() as stack:
        upstreams = {"docker.io": slow.url}
        mirrors = [await stack.enter_async_context(running(tmp_path, upstreams)) for _ in range(3)]
        asking = [asyncio.create_task(fetched(mirror, digest)) for mirror in mirrors * 3]
        for mirror in mirrors:
            await eventually(mirror, "mirror_clients_waiting", 3)
        slow.release()
        answers = await asyncio.gather(*asking)
        assert {got for got, _ in answers} == {digest}
        assert slow.sent[digest] == len(data)
        assert sum("collapsed" in status for _, status in answers) == 8
        stored = 'mirror_fills_total{result="stored",upstream="docker.io"}'
        for mirror in mirrors:
            await eventually(mirror, "mirror_fills_in_progress", 0)
            assert "hit" in (await fetched(mirror, digest))[1]
        figures = [await mirror.metrics() for mirror in mirrors]
        assert sorted(each.get(stored, 0) for each in figures) == [0, 0, 1]


@pytest.mark.long
async def test_a_reader_sees_bytes_while_another_process_still_fills(tmp_path, slow):
    data = random_bytes(8 * MIB)
    digest = slow.add_blob(data)
    slow.hold(6 * MIB)
    with other_process(tmp_path, slow) as leader:
        async with (
            half_read(leader.url + BLOB + digest, len(data)),
            running(leader.directory / "cache", {"docker.io": slow.url}) as mirror,
        ):
            url = mirror.url + BLOB + digest
            async with mirror.session.get(url) as following:
                head = await following.content.readexactly(2 * MIB)
                assert slow.sent[digest] <= 6 * MIB, "upstream is still sending"
                slow.release()
                assert head + await following.read() == data
    assert slow.sent[digest] == len(data)


@pytest.mark.long
async def test_a_reader_does_not_notice_that_the_filling_process_is_killed(tmp_path, slow):
    data = random_bytes(8 * MIB)
    digest = slow.add_blob(data)
    slow.hold(6 * MIB)
    with other_process(tmp_path, slow) as leader:
        async with (
            half_read(leader.url + BLOB + digest, len(data)),
            running(leader.directory / "cache", {"docker.io": slow.url}) as mirror,
        ):
            url = mirror.url + BLOB + digest
            async with mirror.session.get(url) as following:
                head = await following.content.readexactly(2 * MIB)
                leader.kill()
                slow.release()
                assert head + await following.read() == data
            assert "hit" in (await fetched(mirror, digest))[1]
    asked = slow.seen[-1].headers["Range"].removeprefix("bytes=").partition("-")[0]
    assert 4 * MIB <= int(asked) <= 6 * MIB, "it went on, and did not begin again"


@pytest.mark.long
async def test_a_reader_goes_on_alone_where_the_filling_process_stands_still(
    tmp_path, slow, monkeypatch
):
    monkeypatch.setattr(fill_reader, "_PATIENCE_SECONDS", 2.0)
    data = random_bytes(8 * MIB)
    digest = slow.add_blob(data)
    with other_process(tmp_path, slow) as leader:
        async with (
            half_read(leader.url + BLOB + digest, len(data)),
            running(leader.directory / "cache", {"docker.io": slow.url}) as mirror,
        ):
            os.kill(leader.pid, signal.SIGSTOP)
            assert (await fetched(mirror, digest))[0] == digest


@pytest.mark.long
async def test_wrong_bytes_of_another_process_do_not_pass_for_the_blob(tmp_path, slow):
    data = random_bytes(16 * MIB)
    digest = slow.add_blob(data)
    slow.faults.append(Fault(flip=12 * MIB))
    async with (
        running(tmp_path, {"docker.io": slow.url}) as first,
        running(tmp_path, {"docker.io": slow.url}) as second,
    ):
        slow.hold(MIB)
        leading = asyncio.create_task(first.get(BLOB + digest))
        await until(lambda: slow.sent[digest] > 0)
        following = asyncio.create_task(second.get(BLOB + digest))
        await eventually(second, "mirror_clients_waiting", 1)
        slow.release()
        for pull in (leading, following):
            with pytest.raises(aiohttp.ClientError):
                await pull
        assert (await fetched(second, digest))[0] == digest
