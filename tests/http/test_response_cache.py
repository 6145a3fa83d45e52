"""A repeated answer is the answer that the handlers would have given, byte for byte."""

import asyncio
import base64
import contextlib
import inspect
import math
import os
import re
import ssl
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
import trustme
from aiohttp import HttpVersion11, web
from aiohttp.base_protocol import BaseProtocol
from aiohttp.web_protocol import RequestHandler

from mirror.http.admission import Admission
from mirror.http.exchange import EXCHANGE, CacheableResponse
from mirror.http.forwarded import Proxies
from mirror.http.response_cache import CachedResponse, HotKey, ResponseCache
from mirror.http.server import Server
from mirror.http.server_options import Requests, ServerLimits, ServerOptions
from mirror.oci.digest import Digest
from tests.fakes import FakeRegistry, image, random_bytes
from tests.fakes.content import OCI_MANIFEST
from tests.running import Mirror, eventually, running
from tests.waiting import limit, until

pytestmark = [pytest.mark.slow]

REPO = "library/app"
APP = image(random_bytes(64 * 1024, 1), random_bytes(300 * 1024, 2))
SMALL, LARGE = APP.digests[1], APP.digests[2]


@pytest.fixture
async def filled(upstream: FakeRegistry) -> FakeRegistry:
    upstream.add_image(REPO, APP, "1")
    return upstream


class Client:
    """A raw connection, for the very bytes."""

    def __init__(self, streams) -> None:
        self.reader, self.writer = streams

    async def ask(self, request: bytes) -> bytes:
        """Send it, return the whole answer with what is drawn or dated made alike."""
        self.writer.write(request)
        return await self.answer(b"HEAD" if request.startswith(b"HEAD") else b"GET")

    async def answer(self, method: bytes = b"GET") -> bytes:
        async with limit():
            head = await self.reader.readuntil(b"\r\n\r\n")
            told = re.findall(rb"content-length: (\d+)", head, re.IGNORECASE)
            bodiless = method == b"HEAD" or b" 304 " in head.partition(b"\r\n")[0]
            body = b"" if bodiless else await self.reader.readexactly(int(told[0]))
        answer = re.sub(rb"Date: [^\r]+", b"Date: now", head) + body
        boundary = re.search(rb"boundary=(\w+)", head)  # of several parts: drawn each time
        return answer if boundary is None else answer.replace(boundary[1], b"drawn")


@asynccontextmanager
async def connected(mirror: Mirror, context: ssl.SSLContext | None = None):
    host, _, port = mirror.url.removeprefix("http://").partition(":")
    client = Client(await asyncio.open_connection(host, int(port), ssl=context))
    try:
        yield client
    finally:
        client.writer.close()


def request(
    path: str, *fields: str, method: str = "GET", version: str = "1.1", host: str = "mirror"
) -> bytes:
    lines = [f"{method} {path} HTTP/{version}", f"Host: {host}", *fields]
    return "\r\n".join([*lines, "", ""]).encode()


def open_files() -> list[str]:
    """What this process has open, by name."""
    names = []
    for descriptor in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the listing's own
            names.append(os.readlink(f"/proc/self/fd/{descriptor}"))
    return names


async def hits(mirror: Mirror) -> float:
    return sum(
        value
        for name, value in (await mirror.metrics()).items()
        if name.startswith("mirror_requests_total") and 'result="hit"' in name
    )


_PATHS = [
    f"/v2/{REPO}/manifests/1",
    f"/v2/{REPO}/manifests/{APP.digest}",
    f"/v2/{REPO}/manifests/1?ns=docker.io",
    f"/docker.io/v2/{REPO}/manifests/1",
    f"/v2/{REPO}/blobs/{SMALL}",
    f"/v2/{REPO}/blobs/{LARGE}",
    f"/v2/{REPO}/blobs/{SMALL}?ns=docker.io",
    f"/v2/{REPO}/manifests/missing",
    f"/v2/{REPO}/blobs/sha256:{'0' * 64}",
    "/v2/",
    "/v2/nonsense",
    "/healthz",
]
_FIELDS = [
    (),
    (f"Accept: {OCI_MANIFEST}", "User-Agent: docker/29"),
    ("Accept: application/vnd.docker.distribution.manifest.v1+json",),
    ("Range: bytes=5-99",),
    ("Range: bytes=5-99,200-300",),
    (f'If-None-Match: "{APP.digest}"',),
    (f'If-None-Match: "{SMALL}"',),
    (f'If-Range: "{SMALL}"', "Range: bytes=0-0"),
    ("Authorization: Basic " + base64.b64encode(b"me:secret").decode(),),
    ("Connection: keep-alive",),
    ("Cookie: a=b",),
]
_CORPUS = [
    request(path, *fields, method=method)
    for path in _PATHS
    for fields in _FIELDS
    for method in ("GET", "HEAD")
]


@pytest.mark.long
@pytest.mark.slow
async def test_the_whole_corpus_is_answered_alike_with_and_without(tmp_path, filled):
    answers = []
    for hot in (True, False):
        server = {"hot": hot}
        tags = {"max_age": "1h", "negative_max_age": "1h"}
        async with (
            running(tmp_path / str(hot), {"docker.io": filled.url}, server=server, tags=tags) as it,
            connected(it) as client,
        ):
            for each in _CORPUS:  # fetched, adopted and fresh: all that follows are hits
                await client.ask(each)
            await eventually(it, "mirror_cache_objects", 3)
            answers.append([[await client.ask(each) for _ in range(3)] for each in _CORPUS])
    for sent, repeated, worked_out in zip(_CORPUS, *answers, strict=True):
        assert repeated == worked_out, sent
        assert len(set(worked_out)) == 1, sent


async def test_who_asks_before_an_answer_is_over_gets_hot_answers_all_the_same(tmp_path, filled):
    async with running(tmp_path, {"docker.io": filled.url}) as mirror, connected(mirror) as client:
        small, large = (request(f"/v2/{REPO}/blobs/{digest}") for digest in (SMALL, LARGE))
        await client.ask(small)
        await eventually(mirror, "mirror_cache_objects", 1)
        filled.hold(64 * 1024)
        client.writer.write(large)
        await client.reader.readuntil(b"\r\n\r\n")
        client.writer.write(small)
        await mirror.get("/v2/")  # it has come there by now
        filled.release()
        await client.reader.readexactly(len(APP.blobs[2]))
        kept = await client.answer()
        (file,) = (tmp_path / "blobs").rglob(f"{SMALL.partition(':')[2]}.*")
        file.unlink()  # only what is hot can still be had without upstream
        assert await client.ask(small) == kept
    assert filled.count("blob") == 2


async def test_small_blobs_are_repeated_over_tls(tmp_path, filled):
    context, files = tls_files(tmp_path)
    upstreams = {"docker.io": filled.url}
    async with (
        running(tmp_path, upstreams, server=files) as mirror,
        connected(mirror, context) as client,
    ):
        small = request(f"/v2/{REPO}/blobs/{SMALL}")
        await client.ask(small)
        await until(lambda: list((tmp_path / "blobs").rglob(f"{SMALL.partition(':')[2]}.*")))
        kept = await client.ask(small)
        (file,) = (tmp_path / "blobs").rglob(f"{SMALL.partition(':')[2]}.*")
        file.unlink()  # only the repeated answer can still be had without upstream
        assert await client.ask(small) == kept
    assert kept.endswith(APP.blobs[1])
    assert filled.count("blob") == 1


@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "TLS"])
async def test_blobs_on_both_sides_of_the_limits_are_repeated_whole(tmp_path, filled, encrypted):
    """Some are repeated from memory, some from their files, and some not at all."""
    context, files = tls_files(tmp_path) if encrypted else (None, {})
    limits = (64 * 1024, 128 * 1024)
    sizes = (1, *(limit + more for limit in limits for more in (0, 1)))
    blobs = [random_bytes(size, size) for size in sizes]
    asked = [request(f"/v2/{REPO}/blobs/{filled.add_blob(blob)}") for blob in blobs]
    async with (
        running(tmp_path, {"docker.io": filled.url}, server=files) as mirror,
        connected(mirror, context) as client,
    ):
        answers = [await client.ask(each) for each in asked * 4]
    assert [answer.partition(b"\r\n\r\n")[2] for answer in answers] == blobs * 4
    assert filled.count("blob") == len(sizes)


def tls_files(directory: Path) -> tuple[ssl.SSLContext, dict[str, str]]:
    """A client's context, and the keys of [server] for its server."""
    authority, context = trustme.CA(), ssl.create_default_context()
    authority.configure_trust(context)
    issued = authority.issue_cert("127.0.0.1")
    issued.private_key_pem.write_to_path(str(directory / "key.pem"))
    issued.cert_chain_pems[0].write_to_path(str(directory / "cert.pem"))
    key, certificate = str(directory / "key.pem"), str(directory / "cert.pem")
    return context, {"tls_certificate": certificate, "tls_key": key}


async def test_hot_answers_are_counted_logged_and_keep_their_objects_in_use(
    tmp_path, filled, caplog
):
    caplog.set_level("DEBUG", "mirror.access")
    upstreams = {"docker.io": filled.url}
    async with (
        running(tmp_path, upstreams, fill={"prefetch": False}) as mirror,
        connected(mirror) as client,
    ):
        for objects, path in enumerate((f"/v2/{REPO}/manifests/1", f"/v2/{REPO}/blobs/{SMALL}"), 1):
            await mirror.get(path)
            await eventually(mirror, "mirror_cache_objects", objects)
            size = len((await client.ask(request(path))).partition(b"\r\n\r\n")[2])
            before, caplog.records[:] = await mirror.metrics(), []
            for _ in range(5):
                await client.ask(request(path))
            kind = "manifest" if "manifests" in path else "blob"
            after = await mirror.metrics()
            labels = f'kind="{kind}",result="hit"'
            for name, grown in {
                f'mirror_requests_total{{{labels},upstream="docker.io"}}': 5,
                f'mirror_served_bytes_total{{kind="{kind}",upstream="docker.io"}}': 5 * size,
                f"mirror_request_seconds_count{{{labels}}}": 5,
            }.items():
                assert after[name] - before[name] == grown, name
            lines = [record for record in caplog.records if record.name == "mirror.access"]
            hot = [line for line in lines if getattr(line, "kind", "") == kind]
            assert len(hot) == 5
            assert {(line.status, line.bytes, line.client) for line in hot} == {
                (200, size, "127.0.0.1")
            }


async def test_a_tag_is_asked_about_again_when_it_is_no_longer_fresh(tmp_path, filled):
    tags = {"max_age": "400ms"}
    upstreams = {"docker.io": filled.url}
    async with running(tmp_path, upstreams, tags=tags) as mirror, connected(mirror) as client:
        ask = request(f"/v2/{REPO}/manifests/1")
        for _ in range(5):
            assert (await client.ask(ask)).endswith(APP.manifest)
        moved = image(b"another layer")
        filled.add_image(REPO, moved, "1")
        await asyncio.sleep(0.5)
        assert (await client.ask(ask)).endswith(moved.manifest)


async def test_what_leaves_the_cache_is_no_longer_repeated(tmp_path, filled):
    other = filled.add_blob(random_bytes(1_000_000, 8))
    large = filled.add_blob(random_bytes(13_600_000, 9))
    upstreams, cache = {"docker.io": filled.url}, {"max_size": "16MiB"}
    async with running(tmp_path, upstreams, cache=cache) as mirror, connected(mirror) as client:
        ask = request(f"/v2/{REPO}/blobs/{SMALL}")
        for _ in range(4):
            assert b" 200 " in await client.ask(ask)
            await asyncio.sleep(0.05)
        await asyncio.sleep(0.05)  # uses are noted in batches
        seen = filled.count("blob")
        await mirror.get(f"/v2/{REPO}/blobs/{LARGE}")
        await mirror.get(f"/v2/{REPO}/blobs/{other}")
        await eventually(mirror, "mirror_cache_objects", 3)
        await mirror.get(f"/v2/{REPO}/blobs/{large}")  # makes room for itself
        await until(lambda: not any(SMALL.partition(":")[2] in name for name in open_files()))
        assert (await client.ask(ask)).endswith(APP.blobs[1])
        assert filled.count("blob") == seen + 4


async def test_requests_in_a_row_and_in_pieces_are_answered_in_order(tmp_path, filled):
    upstreams = {"docker.io": filled.url}
    async with running(tmp_path, upstreams) as mirror:
        manifest, blob = f"/v2/{REPO}/manifests/1", f"/v2/{REPO}/blobs/{SMALL}"
        async with connected(mirror) as client:
            for path in (manifest, blob) * 3:
                expected = {path: await client.ask(request(path))}
        expected = {}
        async with connected(mirror) as client:
            for path in (manifest, blob):
                expected[path] = await client.ask(request(path))
            client.writer.write(request(manifest) + request(blob) + request(manifest))
            got = [await client.answer() for _ in range(3)]
            assert got == [expected[manifest], expected[blob], expected[manifest]]
        async with connected(mirror) as client:
            for byte in request(blob):
                client.writer.write(bytes([byte]))
                await client.writer.drain()
                await asyncio.sleep(0)
            assert await client.answer() == expected[blob]
            assert await client.ask(request(manifest)) == expected[manifest]
        async with connected(mirror) as client:
            await client.ask(request(manifest))
            client.writer.write(request(manifest)[:20])
            await asyncio.sleep(0.05)
            client.writer.write(request(manifest)[20:])
            assert await client.answer() == expected[manifest]


async def test_a_body_behind_a_get_is_no_request(tmp_path, filled):
    upstreams = {"docker.io": filled.url}
    async with running(tmp_path, upstreams) as mirror, connected(mirror) as client:
        path = f"/v2/{REPO}/manifests/1"
        for _ in range(3):
            await client.ask(request(path))
        smuggled = request("/v2/") + b""
        ask = request(path, f"Content-Length: {len(smuggled)}")
        for _ in range(3):
            client.writer.write(ask + smuggled)
            assert (await client.answer()).endswith(APP.manifest)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await client.reader.readexactly(1)


@pytest.mark.parametrize(
    "access", [{"networks": ["10.0.0.0/8"]}, {"htpasswd_file": "{tmp}/htpasswd"}]
)
async def test_access_rules_are_never_passed_by(tmp_path, filled, access):
    (tmp_path / "htpasswd").write_text("me:$2y$04$" + "a" * 53 + "\n")
    access = {
        key: value.replace("{tmp}", str(tmp_path)) if isinstance(value, str) else value
        for key, value in access.items()
    }
    upstreams = {"docker.io": filled.url}
    async with (
        running(tmp_path / "c", upstreams, access=access) as mirror,
        connected(mirror) as client,
    ):
        for _ in range(4):
            answer = await client.ask(request(f"/v2/{REPO}/manifests/1"))
            assert answer.split()[1] in {b"401", b"403"}


@pytest.mark.long
@pytest.mark.slow
async def test_an_idle_connection_lives_by_its_last_hot_answer(tmp_path, filled):
    limits = {"idle_timeout": "3s"}
    upstreams = {"docker.io": filled.url}
    async with running(tmp_path, upstreams, limits=limits) as mirror, connected(mirror) as client:
        for _ in range(25):
            assert b" 200 " in await client.ask(request(f"/v2/{REPO}/manifests/1"))
            await asyncio.sleep(0.15)
        async with limit():
            assert await client.reader.read() == b""


# The table by itself.


def key(name: str) -> HotKey:
    return HotKey("", False, "GET", f"/{name}", HttpVersion11, ((b"Host", b"mirror"),))


def answer(
    number: int, file: int | None = None, size: int = 10, until: float = 1e9
) -> CachedResponse:
    digest = Digest.of(str(number % 3).encode())
    return CachedResponse(
        b"first", b"rest", b"x" * size, file, size, until, digest, lambda *_: None
    )


def test_the_table_is_bounded_in_number_bytes_and_files(tmp_path):
    table = ResponseCache()
    for number in range(9000):
        table.put(key(f"{number}"), answer(number))
    assert table.get(key("0"), 0) is None
    assert table.get(key("8999"), 0) is not None
    for number in range(100):
        table.put(key(f"large {number}"), answer(number, size=1 << 20))
    kept = [number for number in range(100) if table.get(key(f"large {number}"), 0)]
    assert 20 < len(kept) < 32
    for number in range(600):
        table.put(key(f"file {number}"), answer(number, os.open("/dev/null", os.O_RDONLY)))
    kept = [number for number in range(600) if table.get(key(f"file {number}"), 0)]
    assert kept == list(range(88, 600))
    before = len(os.listdir("/proc/self/fd"))
    table.forget(Digest.of(b"0"))
    table.close()
    assert len(os.listdir("/proc/self/fd")) == before - 512


def test_the_table_counts_the_memory_of_its_keys():
    table = ResponseCache()
    for number in range(2000):  # the most fields of the fewest bytes
        fields = tuple((b"A", b"%d" % each) for each in range(128))
        table.put(key(f"{number}")._replace(fields=fields), answer(number))
    kept = [each for each in range(2000) if table.get(key(f"{each}")._replace(fields=fields), 0)]
    assert 1000 < len(kept) < 2000


def test_what_is_no_longer_fresh_goes():
    table = ResponseCache()
    table.put(key("request"), answer(1, until=5.0))
    assert table.get(key("request"), 4.9) is not None
    assert table.get(key("request"), 5.0) is None
    assert table.get(key("request"), 4.9) is None


def test_aiohttp_still_has_the_private_parts_this_rests_on():
    """Another minor version may not: pyproject.toml pins it, and this says what to look at."""
    source = inspect.getsource(RequestHandler)
    for part in (
        "super().__init__(loop, parser)",
        "messages, upgraded, tail = self._parser.feed_data(data)",
        "self._parser.message_consumed()",
        "self._waiter = loop.create_future()",
        "self._next_keepalive_close_time = close_time",
        "self._keepalive_timeout = keepalive_timeout",
        "if self._force_close or self._close:",
        "self._request_count += 1",
        "def data_received(self, data: bytes) -> None:",
        "def log_exception(self, *args: Any, **kw: Any) -> None:",
    ):
        assert part in source, part
    used = re.findall(r"self\._parser\.(\w+)", source + inspect.getsource(BaseProtocol))
    assert set(used) == {"feed_data", "message_consumed", "pause_reading", "set_upgraded"}


class Ignoring:
    """Ignores requests."""

    def connections_open(self, change):
        pass

    def request_began(self, exchange):
        pass

    def request_ended(self, ending):
        pass

    def repeated(self, ending, used):
        return lambda client, seconds: None


class Handlers:
    """Answers from a table that it may empty; counts its answers."""

    def __init__(self, table: ResponseCache) -> None:
        self.table = table
        self.emptied = False
        self.answers = 0

    def handler(self, request):
        return self.answer

    async def answer(self, request) -> web.Response:
        self.answers += 1
        kept = CacheableResponse(Digest.of(b"x"), math.inf, lambda: None, b"x", size=1)
        request[EXCHANGE].kept = kept
        if self.emptied:
            self.table.close()
        return web.Response(body=b"x")


@pytest.mark.parametrize(("emptied", "answers"), [(False, 1), (True, 3)])
async def test_an_answer_from_before_the_table_was_emptied_is_not_stored(emptied, answers):
    table = ResponseCache()
    handlers = Handlers(table)
    handlers.emptied = emptied
    limits = ServerLimits(10, 10, 60.0, 1.0)
    everyone = Admission([], None)
    options = ServerOptions(handlers, everyone, Proxies(), limits, table, Requests())
    runner = web.ServerRunner(Server(options, Ignoring()))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        async with aiohttp.ClientSession() as session:
            for _ in range(3):
                async with session.get(f"http://127.0.0.1:{runner.addresses[0][1]}/") as answer:
                    assert await answer.read() == b"x"
    finally:
        await runner.cleanup()
    assert handlers.answers == answers
