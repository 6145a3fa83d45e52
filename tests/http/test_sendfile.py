"""What is sent is what was asked for, to the byte, however many are being sent to."""

import os
import tempfile
from concurrent.futures import Executor
from contextlib import AsyncExitStack
from pathlib import Path
from typing import NoReturn

import pytest

from mirror.descriptor import Descriptor, FileRange
from mirror.http.sendfile import Sender
from tests.fakes import random_bytes
from tests.http.test_response_cache import connected, request
from tests.waiting import limit

MIB = 1 << 20
BLOB = random_bytes(8 * MIB, 5)


@pytest.mark.slow
@pytest.mark.parametrize("count", [130_000, 200_000, 262_144, 300_000])
async def test_a_part_ends_where_it_should_while_many_clients_are_slow(mirror, upstream, count):
    path = f"/v2/library/app/blobs/{upstream.add_blob(BLOB)}"
    assert (await mirror.get(path)).body == BLOB
    async with AsyncExitStack() as stack:
        for _ in range(40):
            slow = await stack.enter_async_context(connected(mirror))
            slow.writer.write(request(path))
            await slow.reader.readuntil(b"\r\n\r\n")
        client = await stack.enter_async_context(connected(mirror))
        for _ in range(3):
            client.writer.write(request(path, f"Range: bytes=1000-{1000 + count - 1}"))
            head = await client.reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 206 "), head[:100]
            async with limit():
                assert await client.reader.readexactly(count) == BLOB[1000 : 1000 + count]


class _NoThreads(Executor):
    def submit(self, *_: object, **__: object) -> NoReturn:
        raise AssertionError("the bytes are in memory")


@pytest.mark.skipif(
    " /dev/shm rw" not in Path("/proc/self/mountinfo").read_text(), reason="no tmpfs"
)
async def test_a_file_in_memory_is_read_without_a_thread():
    with tempfile.NamedTemporaryFile(dir="/dev/shm") as file:
        file.write(BLOB)
        file.flush()
        stored = FileRange(Descriptor(os.dup(file.fileno())), 0, len(BLOB))
        try:
            read = await Sender(_NoThreads(), 1).read(stored, 1000, 256 * 1024)
        finally:
            stored.descriptor.close()
    assert read == BLOB[1000 : 1000 + 256 * 1024]
