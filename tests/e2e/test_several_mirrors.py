"""Several mirrors as docs/several-mirrors.md puts them together: behind nginx, and in a chain."""

import asyncio
import os
import re
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import pytest

from tests.fakes import FakeRegistry, image, random_bytes
from tests.fakes.content import Image, digest_of
from tests.peers.dockerd import Dockerd
from tests.peers.layers import estargz_layer, image_of
from tests.peers.mirror import MirrorProcess
from tests.peers.process import Process, accepts, free_port
from tests.peers.requirements import need
from tests.waiting import limit, until

pytestmark = [pytest.mark.e2e]

ROOT = Path(__file__).parents[2]
CONF = (ROOT / "config" / "nginx" / "several-mirrors.conf").read_text()
PAGE = (ROOT / "docs" / "several-mirrors.md").read_text()
NGINX = """\
daemon off; worker_processes 2; user root; pid {directory}/pid; error_log {directory}/errors;
events {{}}
http {{
    access_log off;
    client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/f; uwsgi_temp_path {directory}/u; scgi_temp_path {directory}/s;
    include {directory}/mirror.conf;
}}
"""
MIB = 1 << 20
CLIENTS = 12
ATTEMPTS = 50
ADDRESS = "127.0.0.2"  # of the clients; nginx has 127.0.0.1
NAMES = ("library/app", "library/other")  # the same image: its blobs are fetched once for both


def add_app(upstream: FakeRegistry, seed: int) -> Image:
    """Add an image of eight layers: each of three mirrors gets some of them."""
    layers = [random_bytes(MIB + number, seed * 100 + number) for number in range(8)]
    content = image(*layers, marker=str(seed))
    for name in NAMES:
        upstream.add_image(name, content, "1")
    return content


def page(section: str) -> str:
    """Return the configuration of a mirror in a section of the page."""
    found = re.search(rf"^## {section}\n.*?```toml\n(.*?)```", PAGE, re.DOTALL | re.MULTILINE)
    assert found, section
    return found[1]


@dataclass
class Client:
    """Pulls as a daemon does: three layers at a time; after a break it asks for the rest."""

    session: aiohttp.ClientSession
    url: str
    name: str
    attempts: int = 1
    broken: int = 0
    got: dict[str, int] = field(default_factory=dict)

    async def pull(self, content: Image) -> None:
        async with self.session.get(
            f"{self.url}/v2/{self.name}/manifests/1?ns=docker.io"
        ) as answer:
            assert answer.status == 200
            assert await answer.read() == content.manifest
        turns = asyncio.Semaphore(3)

        async def layer(digest: str) -> None:
            async with turns:
                await self.blob(digest)

        await asyncio.gather(*map(layer, content.digests))

    async def blob(self, digest: str) -> None:
        data = bytearray()
        for left in reversed(range(self.attempts)):
            try:
                await self._read(digest, data)
                break
            except aiohttp.ClientError:
                self.broken += 1
                if not left:
                    raise
                await asyncio.sleep(0.1)
        assert digest_of(bytes(data)) == digest

    async def _read(self, digest: str, data: bytearray) -> None:
        url = f"{self.url}/v2/{self.name}/blobs/{digest}?ns=docker.io"
        fields = {"Range": f"bytes={len(data)}-"} if data else {}
        async with self.session.get(url, headers=fields, raise_for_status=True) as answer:
            assert answer.status == (206 if data else 200)
            async for piece in answer.content.iter_any():
                data += piece
                self.got[digest] = len(data)


@asynccontextmanager
async def clients(*urls: str, attempts: int = 1) -> AsyncIterator[list[Client]]:
    """Twelve clients, spread over the addresses."""
    connector = aiohttp.TCPConnector(limit=0, local_addr=(ADDRESS, 0))
    async with aiohttp.ClientSession(connector=connector) as session:
        yield [
            Client(session, urls[n % len(urls)], NAMES[n // 2 % len(NAMES)], attempts)
            for n in range(CLIENTS)
        ]


async def pull(content: Image, *urls: str) -> None:
    """Have twelve clients pull at once."""
    async with limit(), clients(*urls) as crowd:
        await asyncio.gather(*(client.pull(content) for client in crowd))


@asynccontextmanager
async def running(mirrors: Sequence[MirrorProcess]) -> AsyncIterator[None]:
    async with AsyncExitStack() as stack:
        for mirror in mirrors:
            stack.push_async_callback(asyncio.to_thread, mirror.terminate)
        await asyncio.gather(*(asyncio.to_thread(mirror.start) for mirror in mirrors))
        yield


@dataclass
class Office:
    """Three mirrors behind nginx."""

    directory: Path
    mirrors: list[MirrorProcess]
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def figures(self, name: str) -> list[float]:
        return [mirror.metrics()[name] for mirror in self.mirrors]

    def kill_busiest(self, name: str) -> None:
        """Kill the mirror with the highest figure."""
        figures = self.figures(name)
        self.mirrors.pop(figures.index(max(figures))).kill()


@asynccontextmanager
async def office(directory: Path, upstream: str, conf: str = CONF) -> AsyncIterator[Office]:
    need("nginx")
    server = page("nginx in front").partition("[server]\n")[2].replace("10.1.2.10", "127.0.0.1")
    mirrors = [
        MirrorProcess(directory / f"mirror{number}", {"docker.io": upstream}, server=server)
        for number in (1, 2, 3)
    ]
    port = free_port()
    conf = conf.replace("listen 5000", f"listen 127.0.0.1:{port}")
    for number, mirror in enumerate(mirrors, 1):
        conf = conf.replace(f"mirror{number}.example.com:5000", f"127.0.0.1:{mirror.port}")
    assert "example.com" not in conf
    (directory / "mirror.conf").write_text(conf)
    (directory / "nginx.conf").write_text(NGINX.format(directory=directory))
    command = ["nginx", "-e", f"{directory}/errors", "-c", f"{directory}/nginx.conf"]
    async with running(mirrors):
        nginx = Process(command, directory / "nginx")
        try:
            await asyncio.to_thread(nginx.wait_until, lambda: accepts(port))
            yield Office(directory, mirrors.copy(), port)
        finally:
            nginx.terminate()


def times_sent(upstream: FakeRegistry, content: Image) -> Counter[float]:
    """How many blobs upstream has sent how often."""
    sizes = zip(content.digests, map(len, content.blobs), strict=True)
    return Counter(upstream.sent[digest] / size for digest, size in sizes)


async def missing(url: str) -> int:
    """Ask for a blob that no registry has; return the status."""
    path = f"/v2/{NAMES[0]}/blobs/{digest_of(os.urandom(9))}"
    async with aiohttp.ClientSession(url) as session, session.get(path) as answer:
        return answer.status


async def test_three_mirrors_behind_nginx_fetch_each_blob_once_and_outlive_one(tmp_path, upstream):
    content = add_app(upstream, 1)
    async with office(tmp_path, upstream.url) as front:
        await pull(content, front.url)
        assert times_sent(upstream, content) == {1: 9}
        # Both names mean one manifest, which a mirror that got both may have from the first.
        assert 1 <= upstream.count("manifest", "GET") <= len(NAMES)

        await asyncio.to_thread(front.kill_busiest, "mirror_cache_objects")
        await pull(content, front.url)
        assert set(times_sent(upstream, content)) == {1, 2}, "what it had comes again, once"

        await upstream.stop()
        for _ in range(6):
            assert await missing(front.url) == 502, "no reason to leave a mirror alone"
        await pull(content, front.url)
    assert all(f"  {ADDRESS}  " in mirror.output() for mirror in front.mirrors)


@pytest.mark.long
async def test_a_blob_whose_mirror_is_killed_halfway_comes_whole_to_clients_that_retry(
    tmp_path, upstream
):
    digest = upstream.add_blob(random_bytes(8 * MIB))
    upstream.hold(4 * MIB)
    async with (
        office(tmp_path, upstream.url) as front,
        limit(),
        clients(front.url, attempts=ATTEMPTS) as crowd,
    ):
        pulls = [asyncio.create_task(client.blob(digest)) for client in crowd]
        await until(lambda: all(client.got for client in crowd))
        await asyncio.to_thread(front.kill_busiest, "mirror_fills_in_progress")
        await until(lambda: all(client.broken for client in crowd))
        upstream.release()
        await asyncio.gather(*pulls)
    assert upstream.sent[digest] == 12 * MIB, "the half, and the whole once"


@pytest.mark.long
async def test_with_repositories_as_keys_one_mirror_has_a_whole_image(tmp_path, upstream):
    (other,) = re.findall(r"```nginx\n( *~.*repository.*\n)```", PAGE)
    conf = re.sub(r"^ +~(?!.*repository).*\n", "", CONF, flags=re.MULTILINE)
    conf = re.sub(r"^ +~.*repository.*\n", other, conf, flags=re.MULTILINE)
    content = add_app(upstream, 1)
    async with office(tmp_path, upstream.url, conf) as front, limit(), clients(front.url) as crowd:
        await asyncio.gather(*(client.pull(content) for client in crowd if client.name == NAMES[0]))
        # A blob is stored a moment after its clients have it.
        await until(lambda: sum(front.figures("mirror_cache_objects")) == 10)
        assert sorted(front.figures("mirror_cache_objects")) == [0, 0, 10]


@pytest.mark.long
async def test_two_sites_behind_a_central_mirror_fetch_once_and_outlive_it(tmp_path, upstream):
    first = add_app(upstream, 1)
    central = MirrorProcess(tmp_path / "central", {"docker.io": upstream.url})
    snippet = page("A chain").replace("central.example.com:5000", f"127.0.0.1:{central.port}")
    mirrors = snippet.partition('[upstreams."docker.io"]\n')[2].partition("\n")[0]
    sites = [
        MirrorProcess(
            tmp_path / name, {"docker.io": upstream.url}, f'{mirrors}\n[tags]\nmax_age = "1ms"\n'
        )
        for name in ("site1", "site2")
    ]
    async with running([central, *sites]):
        urls = [site.url for site in sites]
        await pull(first, *urls)
        assert times_sent(upstream, first) == {1: 9}
        central.kill()
        await pull(first, *urls)
        assert times_sent(upstream, first) == {1: 9}
        second = add_app(upstream, 2)
        await pull(second, *urls)
        assert times_sent(upstream, second) == {len(sites): 9}, "each site by itself"


@pytest.mark.long
async def test_docker_pulls_through_nginx_while_a_mirror_dies(tmp_path_factory, upstream):
    need("nginx", "dockerd", "docker", "containerd", "runc", root=True)
    directory = tmp_path_factory.mktemp("several")  # containerd's sockets have short names only
    sizes = [8 * MIB, *[MIB] * 5]
    layers = [estargz_layer({f"noise{n}": os.urandom(size)}) for n, size in enumerate(sizes)]
    content = image_of(layers, ["true"])
    upstream.add_image(NAMES[0], content, "1")
    async with office(directory, upstream.url) as front:
        docker = Dockerd(directory / "docker", front.url)

        async def repeat() -> None:
            for command in ("rmi", "pull"):
                await asyncio.to_thread(docker.docker, command, "app:1")

        await asyncio.to_thread(docker.start)
        try:
            upstream.hold(4 * MIB)
            pulling = asyncio.create_task(asyncio.to_thread(docker.docker, "pull", "app:1"))
            await until(lambda: all(upstream.sent[digest] for digest in content.digests))
            await until(lambda: sum(front.figures("mirror_fills_in_progress")) == 1)
            await asyncio.to_thread(front.kill_busiest, "mirror_fills_in_progress")
            upstream.release()
            await pulling
            await repeat()  # fetches again what lay with the dead mirror
            await upstream.stop()
            await repeat()
        finally:
            await asyncio.to_thread(docker.stop)
