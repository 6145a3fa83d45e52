"""Behind a reverse proxy: access, limits, log and upstream go by the client, not by the proxy."""

import asyncio
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from mirror.user_error import UserError
from tests.fakes import FakeRegistry, image, random_bytes
from tests.http.test_response_cache import Client, connected, request
from tests.running import running
from tests.waiting import limit

pytestmark = [pytest.mark.slow]

APP = image(b"layer")
PATH = "/v2/library/app/manifests/1"
LOCAL, NOBODY = {"trusted_proxies": ["127.0.0.1"]}, dict[str, Any]()
OFFICE = {"networks": ["192.0.2.0/24"]}


@pytest.fixture
async def filled(upstream: FakeRegistry) -> FakeRegistry:
    upstream.add_image("library/app", APP, "1")
    return upstream


@asynccontextmanager
async def behind(tmp_path, upstream, server, **sections):
    upstreams = {"docker.io": upstream.url}
    async with (
        running(tmp_path, upstreams, server=server, **sections) as mirror,
        connected(mirror) as client,
    ):
        yield mirror, client


def of(address: str) -> bytes:
    return request(PATH, f"X-Forwarded-For: {address}")


def status(answer: bytes) -> int:
    return int(answer.split(b" ")[1])


@pytest.mark.parametrize("hot", [True, False])
async def test_one_connection_of_a_proxy_carries_clients_of_all_kinds(tmp_path, filled, hot):
    """Also when the answers are repeated without a handler."""
    server = {**LOCAL, "hot": hot}
    async with behind(tmp_path, filled, server, access=OFFICE) as (_, client):
        for _ in range(4):
            assert status(await client.ask(of("192.0.2.1"))) == 200
            assert status(await client.ask(of("198.51.100.1"))) == 403
            assert status(await client.ask(of("192.0.2.9, 198.51.100.1"))) == 403
            assert status(await client.ask(of("198.51.100.1, 192.0.2.9"))) == 200
            assert status(await client.ask(of("nonsense"))) == 403
            assert status(await client.ask(request(PATH))) == 403  # the proxy itself


async def test_anybody_elses_word_means_nothing(tmp_path, filled):
    async with behind(tmp_path, filled, NOBODY, access=OFFICE) as (_, client):
        assert status(await client.ask(of("192.0.2.1"))) == 403
        assert status(await client.ask(request(PATH, "Forwarded: for=192.0.2.1"))) == 403
    access = {"networks": ["127.0.0.0/8"]}
    async with behind(tmp_path, filled, NOBODY, access=access) as (_, client):
        assert status(await client.ask(of("198.51.100.1"))) == 200


@asynccontextmanager
async def from_address(mirror, address: str):
    port = int(mirror.url.rpartition(":")[2])
    client = Client(await asyncio.open_connection("127.0.0.1", port, local_addr=(address, 0)))
    yield client
    client.writer.close()


async def test_the_same_bytes_from_a_proxy_and_from_a_client_are_told_apart(tmp_path, filled):
    """A client that writes what a proxy would must not get what the proxy was given."""
    async with FakeRegistry() as other:
        theirs = image(b"of another registry")
        other.add_image("library/app", theirs, "1")
        upstreams = {"docker.io": filled.url, "o.lan": {"url": other.url, "hosts": ["o.example"]}}
        same = request(PATH, "X-Forwarded-For: 192.0.2.1", "X-Forwarded-Host: o.example")
        async with running(tmp_path, upstreams, server=LOCAL) as mirror:
            for _ in range(3):
                for address, body in {"127.0.0.1": theirs, "127.0.0.2": APP}.items():
                    async with from_address(mirror, address) as client:
                        for _ in range(3):
                            assert (await client.ask(same)).endswith(body.manifest)


async def test_what_one_proxy_says_of_nobody_means_another_from_the_next(tmp_path, filled):
    """Both are proxies, one is in the network itself: nothing is repeated from it to the other."""
    server, access = {"trusted_proxies": ["127.0.0.0/8"]}, {"networks": ["127.0.0.1"]}
    upstreams = {"docker.io": filled.url}
    async with running(tmp_path, upstreams, server=server, access=access) as mirror:
        for _ in range(2):
            for address, wanted in {"127.0.0.1": 200, "127.0.0.2": 403}.items():
                async with from_address(mirror, address) as client:
                    for _ in range(3):
                        assert status(await client.ask(request(PATH))) == wanted


@pytest.mark.parametrize("repeated", [False, True])
async def test_the_log_names_the_client(tmp_path, filled, caplog, repeated):
    caplog.set_level("DEBUG", "mirror.access")
    async with behind(tmp_path, filled, LOCAL) as (_, client):
        for _ in range(4 if repeated else 1):
            caplog.records[:] = []
            await client.ask(of("192.0.2.1"))
        line = next(record for record in caplog.records if record.name == "mirror.access")
        assert line.client == "192.0.2.1"


async def test_the_host_that_the_client_used_chooses_the_upstream(tmp_path, filled):
    async with FakeRegistry() as other:
        other_app = image(b"of another registry")
        other.add_image("app", other_app, "1")
        upstreams = {
            "docker.io": filled.url,
            "other.lan": {"url": other.url, "hosts": ["images.example.com"]},
        }
        async with running(tmp_path, upstreams, server=LOCAL) as mirror:
            path, host = "/v2/app/manifests/1", "images.example.com"
            assert (await mirror.get(path, X_Forwarded_Host=host)).body == other_app.manifest
            told = f"for=192.0.2.1;host={host}"
            assert (await mirror.get(path, Forwarded=told)).body == other_app.manifest
            assert (await mirror.get(path)).body == APP.manifest
        async with running(tmp_path, upstreams) as mirror:
            assert (await mirror.get(path, X_Forwarded_Host=host)).body == APP.manifest


async def test_the_page_shows_the_address_that_the_client_used(tmp_path, filled):
    async with running(tmp_path, {"docker.io": filled.url}, server=LOCAL) as mirror:
        fields = {"X_Forwarded_Proto": "https", "X_Forwarded_Host": "m.example.com"}
        assert b"https://m.example.com/metrics" in (await mirror.get("/", **fields)).body


async def test_a_proxy_has_as_many_connections_as_all_clients_and_each_of_them_its_own(
    tmp_path, filled
):
    limits = {"connections_per_client": 2}
    upstreams = {"docker.io": filled.url}
    async with running(tmp_path, upstreams, server=LOCAL, limits=limits) as mirror:
        async with (
            connected(mirror) as one,
            connected(mirror) as two,
            connected(mirror) as three,
        ):
            for client in (one, two, three):
                assert status(await client.ask(of("192.0.2.1"))) == 200
        large = filled.add_blob(random_bytes(32 << 20))
        url = f"{mirror.url}/v2/library/app/blobs/{large}"
        async with aiohttp.ClientSession() as session:
            assert await asked(session, url, "192.0.2.1") == 200
            fields = {"X-Forwarded-For": "192.0.2.1"}
            async with session.get(url, headers=fields), session.get(url, headers=fields):
                assert await asked(session, url, "192.0.2.1") == 503
                assert await asked(session, url, "192.0.2.2") == 200
            async with limit():
                while await asked(session, url, "192.0.2.1") != 200:
                    await asyncio.sleep(0.01)


async def asked(session: aiohttp.ClientSession, url: str, client: str) -> int:
    async with session.get(url, headers={"X-Forwarded-For": client}) as answer:
        await answer.read()
        return answer.status


@pytest.mark.parametrize(("trusted", "wanted"), [(["unix:"], 403), ([], 200)])
async def test_a_unix_socket_is_a_proxys_where_that_is_said(tmp_path, filled, trusted, wanted):
    path = str(tmp_path / "m.sock")
    server = {"listen": ["127.0.0.1:0", f"unix:{path}"], "trusted_proxies": trusted}
    upstreams = {"docker.io": filled.url}
    async with running(tmp_path, upstreams, server=server, access=OFFICE):
        client = Client(await asyncio.open_unix_connection(path))
        for _ in range(3):
            assert status(await client.ask(of("198.51.100.1"))) == wanted
            assert status(await client.ask(of("192.0.2.1"))) == 200
        client.writer.close()


@pytest.mark.parametrize("network", ["office", "10.0.0.1/8", "unix", ""])
async def test_what_is_no_proxy_is_a_mistake(tmp_path, network):
    with pytest.raises(UserError, match=r"allowed: a network such as .*, or unix: for clients"):
        async with running(tmp_path, {}, server={"trusted_proxies": [network]}):
            pass


@pytest.mark.parametrize("glued", [True, False])
async def test_a_trailer_of_one_client_is_no_field_of_the_next_ones_request(
    tmp_path, filled, glued
):
    """A proxy may send both over one connection, and pass the trailer on."""
    blob = f"/v2/library/app/blobs/{APP.digests[0]}"
    chunked = request(blob, "X-Forwarded-For: 192.0.2.1", "Transfer-Encoding: chunked")
    chunked += b"1\r\nx\r\n0\r\nRange: bytes=0-0\r\n\r\n"
    following = request(blob, "X-Forwarded-For: 192.0.2.9")
    async with behind(tmp_path, filled, LOCAL) as (_, client):
        client.writer.write(chunked + following if glued else chunked)
        assert (await client.answer()).endswith(APP.blobs[0])
        async with asyncio.timeout(50):
            assert await client.reader.read() == b""  # a proxy asks again on another connection
