"""Clients of all kinds at once, a third of them talking nonsense: nothing is left behind."""

import asyncio
import contextlib
import random

import pytest

from tests.fakes import FakeRegistry, image, random_bytes
from tests.proxy.clients import ask, connected, trusting
from tests.running import eventually, running
from tests.waiting import limit

LAYER = random_bytes(100_000)
APP = image(LAYER)
REQUESTS = (
    b"CONNECT registry-1.docker.io:443 HTTP/1.1\r\nHost: x\r\n\r\n",
    b"CONNECT PLACE HTTP/1.1\r\nHost: x\r\n\r\n",
    b"GET http://docker.io/v2/ HTTP/1.1\r\nHost: x\r\n\r\n",
)
AT_ONCE, LIMIT = 30, 90


async def echo(reader, writer) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


def nonsense(dice: random.Random, place: str) -> bytes:
    """A request with some bytes altered and others behind it."""
    data = bytearray(dice.choice(REQUESTS).replace(b"PLACE", place.encode()))
    for _ in range(dice.randint(0, 4)):
        data[dice.randrange(len(data))] = dice.randrange(256)
    return bytes(data) + dice.randbytes(dice.randint(0, 300))


@pytest.mark.long
async def test_a_crowd_of_all_kinds_leaves_nothing_behind(tmp_path, upstream: FakeRegistry, caplog):
    upstream.add_image("team/app", APP, "1")
    dice = random.Random(3)
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    place = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    sections = {
        "proxy": {"listen": "127.0.0.1:0", "allow": [place]},
        "limits": {"idle_timeout": "40s", "connections_per_client": LIMIT},
    }
    async with server, running(tmp_path, {"docker.io": upstream.url}, **sections) as mirror:
        trust = trusting(tmp_path)

        async def pull() -> None:
            path = f"https://registry-1.docker.io/v2/team/app/blobs/{APP.digests[1]}"
            assert (await ask(mirror, trust, path)).body == LAYER

        async def talk() -> None:
            async with connected(mirror) as raw, limit():
                assert " 200 " in await raw.connect(place)
                await raw.send(LAYER)
                assert await raw.reader.readexactly(len(LAYER)) == LAYER
                if dice.random() < 0.5:
                    raw.writer.transport.abort()

        async def babble() -> None:
            async with connected(mirror) as raw:
                with contextlib.suppress(OSError, TimeoutError):
                    await raw.send(nonsense(dice, place))
                    if dice.random() < 0.5:
                        raw.writer.transport.abort()
                    async with asyncio.timeout(1):
                        await raw.reader.read()

        room = asyncio.Semaphore(AT_ONCE)

        async def come(kind) -> None:
            async with room:
                await kind()

        await asyncio.gather(*(come(dice.choice([pull, talk, babble])) for _ in range(200)))
        await eventually(mirror, "mirror_tunnels", 0)
        # Whoever had not been counted out would be in the way of these.
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(LIMIT - 1):  # and one for the figures
                raw = await stack.enter_async_context(connected(mirror))
                assert " 200 " in await raw.connect(place)
    assert [record.getMessage() for record in caplog.records if record.levelname == "ERROR"] == []
