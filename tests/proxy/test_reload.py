"""A configuration that is read again counts for the proxy too; what is open stays open."""

import asyncio

from tests.fakes import FakeRegistry, image
from tests.proxy.clients import connected, trusting
from tests.running import configured, running
from tests.waiting import limit

APP = image(b"layer")
PATH = f"/v2/team/app/manifests/{APP.digest}"


async def test_rules_and_upstreams_change_under_connections_that_stay(
    tmp_path, upstream: FakeRegistry
):
    upstream.add_image("team/app", APP, "1")
    server = await asyncio.start_server(lambda *streams: taken.put_nowait(streams), "127.0.0.1", 0)
    taken = asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]]()
    place = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    before = {"docker.io": "http://127.0.0.1:9", "second.test": upstream.url}
    after = {"docker.io": "http://127.0.0.1:9"}
    proxy = {"listen": "127.0.0.1:0", "allow": [place]}
    async with server, running(tmp_path, before, proxy=proxy) as mirror:
        async with connected(mirror) as inside, connected(mirror) as tunnel:
            await tunnel.connect(place)
            reader, writer = await taken.get()
            await inside.connect("second.test:443")
            await inside.start_tls(trusting(tmp_path), "second.test")
            request = f"GET {PATH} HTTP/1.1\r\nHost: second.test\r\n\r\n".encode()
            await inside.send(request)
            async with limit():
                assert b" 200 " in await inside.reader.readuntil(b"\r\n\r\n")
                await inside.reader.readexactly(len(APP.manifest))
            await mirror.reload(configured(tmp_path, after, proxy={**proxy, "allow": []}))
            async with limit():
                await tunnel.send(b"still")
                assert await reader.readexactly(5) == b"still"
                await inside.send(request)
                assert b" 403 " in await inside.reader.readuntil(b"\r\n\r\n"), "no upstream now"
            writer.close()
        async with connected(mirror) as raw:
            assert "HTTP/1.1 403" in await raw.connect(place)
        async with connected(mirror) as raw:
            assert "HTTP/1.1 403" in await raw.connect("second.test:443")
