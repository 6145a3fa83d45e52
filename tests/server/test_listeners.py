"""Where the mirror listens: IPv4, IPv6, both, the file system, several at once."""

import asyncio
import os
import re
import socket
import ssl
import stat
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
import trustme

from mirror.config import load
from mirror.config.addresses import TcpAddress
from mirror.server import serving
from mirror.server.listeners import open_tcp, opened_listeners
from mirror.user_error import UserError
from tests.fakes import image
from tests.peers.process import free_port
from tests.running import configured as configured_by


def _has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


ipv6 = pytest.mark.skipif(not _has_ipv6(), reason="this machine has no IPv6")


def configured(directory: Path, listen, upstream="http://127.0.0.1:9", **server):
    return load(
        None,
        {
            "server": {"listen": listen, "drain": "1s", **server},
            "cache": {"directory": str(directory / "cache"), "min_free": "0"},
            "upstreams": {"docker.io": {"url": upstream}},
        },
    )


@asynccontextmanager
async def listening(directory: Path, listen, upstream="http://127.0.0.1:9", **server):
    """A mirror there; yields the addresses as they became."""
    config = configured(directory, listen, upstream, **server)
    async with serving(config, asyncio.Event()) as running:
        yield [str(listener.address) for listener in running.listeners]


async def status(url: str, path: str = "", context: ssl.SSLContext | None = None) -> int:
    connector = aiohttp.UnixConnector(path) if path else aiohttp.TCPConnector(ssl=context or True)
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        session.get(f"{url}/v2/") as answer,
    ):
        return answer.status


async def test_several_places_are_all_served(tmp_path):
    path = str(tmp_path / "m.sock")
    listen = ["127.0.0.1:0", "127.0.0.2:0", f"unix:{path}"]
    async with listening(tmp_path, listen) as (one, two, three):
        assert one.startswith("127.0.0.1:")
        assert two.startswith("127.0.0.2:")
        assert three == f"unix:{path}"
        assert [await status(f"http://{place}") for place in (one, two)] == [200, 200]
        assert await status("http://localhost", path) == 200


@ipv6
async def test_no_host_is_ipv4_and_ipv6_on_one_socket(tmp_path):
    async with listening(tmp_path, ":0") as (place,):
        assert place.startswith(":")
        assert await status(f"http://127.0.0.1{place}") == 200
        assert await status(f"http://[::1]{place}") == 200


@ipv6
async def test_metrics_have_a_port_of_their_own_that_clients_cannot_block(tmp_path):
    closed = {"access": {"networks": ["10.0.0.0/8"]}, "limits": {"connections": 1}}
    server = {"metrics_listen": "127.0.0.1:0"}
    async with (
        serving(configured_by(tmp_path, {}, server=server, **closed), asyncio.Event()) as mirror,
        aiohttp.ClientSession() as session,
    ):
        images, metrics = (f"http://{each.address}" for each in mirror.listeners)
        place = "127.0.0.1", int(images.rpartition(":")[2])
        found = {}
        # More connections than the limit.
        with socket.create_connection(place), socket.create_connection(place):
            for path in ("/metrics", "/healthz", "/readyz", "/", "/v2/"):
                async with session.get(metrics + path) as answer:
                    found[path] = answer.status
                    assert "mirror_build_info" in await answer.text() or path != "/metrics"
    assert found == {"/metrics": 200, "/healthz": 200, "/readyz": 200, "/": 404, "/v2/": 404}


async def test_metrics_on_a_port_of_their_own_are_not_for_clients(tmp_path):
    stopping = asyncio.Event()
    server = {"metrics_listen": "127.0.0.1:0"}
    async with (
        serving(configured_by(tmp_path, {}, server=server), stopping) as mirror,
        aiohttp.ClientSession() as session,
    ):
        images, metrics = (f"http://{each.address}" for each in mirror.listeners)
        for url, path, status in (
            (images, "/metrics", 404),
            (images, "/healthz", 200),
            (images, "/readyz", 200),
            (metrics, "/readyz", 200),
        ):
            async with session.get(url + path) as answer:
                assert answer.status == status
                assert "metrics_listen" in await answer.text() or status == 200
        stopping.set()
        async with session.get(metrics + "/readyz") as answer:
            assert answer.status == 503


def test_a_port_for_metrics_that_is_in_use_is_one_line(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as other:
        place = f"127.0.0.1:{other.getsockname()[1]}"
        config = configured_by(tmp_path, {}, server={"metrics_listen": place})
        advice = re.escape("choose another with [server] metrics_listen")
        with pytest.raises(UserError, match=f"{place}: .*; {advice}"), opened_listeners(config):
            pass


async def test_two_colons_in_brackets_are_ipv6_alone(tmp_path):
    port = free_port()  # of both families; 0 may be one that another program has for IPv4
    async with listening(tmp_path, f"[::]:{port}"):
        assert await status(f"http://[::1]:{port}") == 200
        with pytest.raises(aiohttp.ClientConnectorError):
            await status(f"http://127.0.0.1:{port}")


@ipv6
async def test_networks_hold_for_ipv4_on_a_socket_for_both(tmp_path):
    tree = {"networks": ["127.0.0.0/8"]}
    config = configured(tmp_path, ":0").model_copy(
        update={"access": load(None, {"access": tree}).access}
    )
    async with serving(config, asyncio.Event()) as running:
        (listener,) = running.listeners
        assert await status(f"http://127.0.0.1{listener.address}") == 200
        assert await status(f"http://[::1]{listener.address}") == 403


async def test_a_name_is_every_address_it_has(tmp_path):
    async with listening(tmp_path, "localhost:0") as places:
        assert {await status(f"http://{place}") for place in places} == {200}


async def test_an_image_comes_through_a_unix_socket(tmp_path, upstream):
    layer = os.urandom(3_000_000)
    app = image(layer)
    upstream.add_image("library/app", app, "1")
    path = str(tmp_path / "m.sock")
    async with (
        listening(tmp_path, f"unix:{path}", upstream.url),
        aiohttp.ClientSession(connector=aiohttp.UnixConnector(path)) as session,
    ):
        for _ in range(3):  # a miss, a hit, and the manifest repeated
            url = "http://localhost/v2/library/app"
            async with session.get(f"{url}/manifests/1") as answer:
                assert await answer.read() == app.manifest
            async with session.get(f"{url}/blobs/{app.digests[1]}") as answer:
                assert await answer.read() == layer


async def test_tls_is_for_tcp_and_not_for_a_unix_socket(tmp_path):
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    issued.private_key_pem.write_to_path(str(tmp_path / "key.pem"))
    issued.cert_chain_pems[0].write_to_path(str(tmp_path / "cert.pem"))
    context = ssl.create_default_context()
    authority.configure_trust(context)
    tls = {"tls_certificate": str(tmp_path / "cert.pem"), "tls_key": str(tmp_path / "key.pem")}
    path = str(tmp_path / "m.sock")
    async with listening(tmp_path, ["127.0.0.1:0", f"unix:{path}"], **tls) as (place, _):
        assert await status(f"https://{place}", context=context) == 200
        assert await status("http://localhost", path) == 200


# The socket file.


@pytest.mark.parametrize(("mode", "bits"), [("0660", 0o660), ("666", 0o666)])
def test_the_socket_file_has_its_mode_and_goes_in_the_end(tmp_path, mode, bits):
    path = tmp_path / "m.sock"
    with opened_listeners(configured(tmp_path, f"unix:{path}", socket_mode=mode)):
        assert stat.S_IMODE(path.stat().st_mode) == bits
    assert not path.exists()


def test_the_socket_of_a_process_that_is_gone_is_replaced(tmp_path):
    path = tmp_path / "m.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
        left.listen()
    assert path.is_socket()
    with (
        opened_listeners(configured(tmp_path, f"unix:{path}")),
        socket.socket(socket.AF_UNIX) as client,
    ):
        client.connect(str(path))


def test_a_socket_in_use_is_refused_and_stays(tmp_path):
    path = tmp_path / "m.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        with (
            pytest.raises(UserError, match=rf"cannot listen on unix:{path}: Address already in"),
            opened_listeners(configured(tmp_path, ["127.0.0.1:0", f"unix:{path}"])),
        ):
            pass
        assert path.is_socket()


def test_what_is_no_socket_is_never_removed(tmp_path):
    path = tmp_path / "m.sock"
    path.write_text("precious")
    with (
        pytest.raises(UserError, match="the file exists and is not a socket"),
        opened_listeners(configured(tmp_path, f"unix:{path}")),
    ):
        pass
    assert path.read_text() == "precious"


def test_what_took_the_place_of_the_socket_stays(tmp_path):
    path = tmp_path / "m.sock"
    with opened_listeners(configured(tmp_path, f"unix:{path}")):
        path.unlink()
        path.write_text("precious")
    assert path.read_text() == "precious"


@pytest.mark.parametrize("place", ["nowhere/m.sock", "x" * 200])
def test_a_socket_that_cannot_be_is_one_line(tmp_path, place):
    path = tmp_path / place
    with (
        pytest.raises(UserError, match=rf"^cannot listen on unix:{path}: .*--listen$"),
        opened_listeners(configured(tmp_path, f"unix:{path}")),
    ):
        pass


# Several processes.


def test_a_port_is_shared_only_where_all_say_so():
    (first,) = open_tcp(TcpAddress("127.0.0.1", 0), reuse_port=True)
    assert isinstance(first.address, TcpAddress)
    (second,) = open_tcp(first.address, reuse_port=True)
    try:
        assert second.address == first.address
        with pytest.raises(UserError, match="Address already in use"):
            open_tcp(first.address)
    finally:
        first.close()
        second.close()


def test_small_answers_are_not_held_back():
    (listener,) = open_tcp(TcpAddress("127.0.0.1", 0))
    try:
        assert listener.raw.proto == socket.IPPROTO_TCP, "asyncio sets TCP_NODELAY by it"
        assert not listener.raw.getblocking()
    finally:
        listener.close()
