"""The proxy's port: the same forms as the mirror's own, shared by several processes."""

import asyncio
import ssl
import urllib.request

import aiohttp
import pytest
from aiohttp import web

from mirror.ca import ensure_authority
from mirror.user_error import UserError
from tests.fakes import FakeRegistry, image
from tests.fakes.content import OCI_MANIFEST, digest_of
from tests.peers.mirror import MirrorProcess
from tests.peers.process import free_port
from tests.proxy.clients import ask, trusting
from tests.proxy.registry import recording
from tests.running import running
from tests.waiting import LIMIT_SECONDS, limit

pytestmark = [pytest.mark.slow, pytest.mark.long]


NOWHERE = {"docker.io": "http://127.0.0.1:9"}


async def test_without_being_told_to_the_mirror_is_nobodys_proxy(tmp_path):
    async with running(tmp_path, NOWHERE) as mirror:
        assert mirror.proxy == ""
    assert not (tmp_path / "proxy").exists()


async def test_it_may_be_a_unix_socket(tmp_path):
    path = tmp_path / "proxy.sock"
    async with running(tmp_path / "c", NOWHERE, proxy={"listen": f"unix:{path}"}):
        reader, writer = await asyncio.open_unix_connection(str(path))
        writer.write(b"CONNECT registry-1.docker.io:443 HTTP/1.1\r\nHost: x\r\n\r\n")
        async with limit():
            assert await reader.readline() == b"HTTP/1.1 200 Connection established\r\n"
        writer.transport.abort()
    assert not path.exists()


async def test_what_cannot_be_listened_on_names_its_key(tmp_path):
    with pytest.raises(UserError, match=r"cannot listen on unix:.*; .*\[proxy\] listen$"):
        async with running(tmp_path, NOWHERE, proxy={"listen": f"unix:{tmp_path}/no/p.sock"}):
            pass


async def test_a_ca_that_cannot_be_used_keeps_the_mirror_from_starting(tmp_path):
    (tmp_path / "file").write_text("")
    proxy = {"listen": "127.0.0.1:0", "ca_directory": str(tmp_path / "file" / "ca")}
    with pytest.raises(UserError, match="ca_directory"):
        async with running(tmp_path, NOWHERE, proxy=proxy):
            pass


async def test_all_workers_show_certificates_of_one_ca(tmp_path, upstream: FakeRegistry):
    app = image(b"layer")
    upstream.add_image("team/app", app, "1")
    port = free_port()
    extra = f'[proxy]\nlisten = "127.0.0.1:{port}"\n'
    mirror = MirrorProcess(tmp_path, {"docker.io": upstream.url}, extra, workers=3)
    await asyncio.to_thread(mirror.start)
    try:
        authority = ensure_authority(tmp_path / "cache-state", "mirror")
        trust = ssl.create_default_context(cadata=authority.public_pem().decode())
        url = f"https://registry-1.docker.io/v2/team/app/manifests/{app.digest}"
        for _ in range(12):
            connector = aiohttp.TCPConnector(ssl=trust, force_close=True)
            async with (
                aiohttp.ClientSession(connector=connector) as session,
                session.get(url, proxy=f"http://127.0.0.1:{port}") as response,
            ):
                assert await response.read() == app.manifest
        assert f"proxy   listens on 127.0.0.1:{port}" in mirror.output()

        def scraped() -> str:
            with urllib.request.urlopen(f"{mirror.url}/metrics", timeout=LIMIT_SECONDS) as answer:
                return answer.read().decode()

        figures = await asyncio.to_thread(scraped)
        name = 'mirror_proxy_connections_total{result="intercepted",upstream="docker.io"}'
        assert f"{name} 12.0" in figures
    finally:
        assert await asyncio.to_thread(mirror.terminate) == 0


async def test_a_push_through_one_worker_is_seen_by_all(tmp_path):
    old, new = image(b"old").manifest, image(b"new").manifest
    async with recording() as registry:
        registry.answer = lambda request: manifest(request, old)
        (tmp_path / "ca.pem").write_bytes(registry.ca)
        port = free_port()
        extra = f'[proxy]\nlisten = "127.0.0.1:{port}"\n[tags]\nmax_age = "1h"\n'
        extra += f'[upstreams."second.test"]\nurl = "{registry.url}"\n'
        extra += f'ca_file = "{tmp_path}/ca.pem"\n'
        mirror = MirrorProcess(tmp_path / "m", NOWHERE, extra, workers=3)
        await asyncio.to_thread(mirror.start)
        try:
            trust = trusting(tmp_path / "m" / "cache")
            office = f"http://127.0.0.1:{port}"
            url = "https://second.test/v2/team/app/manifests/1"
            for _ in range(12):  # until all workers have it, fresh for an hour
                assert (await ask(office, trust, url)).body == old
            registry.answer = lambda request: manifest(request, new)
            assert (await ask(office, trust, url, "PUT", data=new)).status == 201
            for _ in range(12):
                assert (await ask(office, trust, url)).body == new
        finally:
            await asyncio.to_thread(mirror.terminate)


def manifest(request: web.BaseRequest, body: bytes) -> web.Response:
    """What a registry answers that has this one manifest."""
    if request.method == "PUT":
        return web.Response(status=201)
    headers = {"Docker-Content-Digest": digest_of(body), "Content-Type": OCI_MANIFEST}
    return web.Response(body=body, headers=headers)
