"""What is sent is what was asked for, to the byte, however many are being sent to."""

from contextlib import AsyncExitStack

import pytest

from tests.fakes import random_bytes
from tests.http.test_response_cache import connected, request
from tests.waiting import limit

MIB = 1 << 20
BLOB = random_bytes(8 * MIB, 5)


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
