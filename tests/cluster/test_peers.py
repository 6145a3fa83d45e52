"""Requests between replicas: who may send them, and what the sender makes of odd answers."""

import asyncio
import contextlib
import hashlib
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import aiohttp
import pytest
from aiohttp import web

from mirror.cluster.peers import opened_peers
from mirror.cluster.secret import Secret
from mirror.oci.digest import Digest
from tests.cluster.conftest import Events
from tests.cluster.replicas import SECRET, Replicas, replicas
from tests.fakes import FakeRegistry, random_bytes
from tests.fakes.content import digest_of
from tests.peers.process import free_port
from tests.running import Mirror, running
from tests.waiting import limit, until

pytestmark = [pytest.mark.slow]

MIB = 1 << 20


def path(digest: str) -> str:
    return f"/v2/library/app/blobs/{digest}"


def signed(path: str, secret: str = SECRET, now: float | None = None) -> dict[str, str]:
    signer = Secret(secret.encode(), time.time if now is None else lambda: now)
    span = "bytes=0-"
    return {"Range": span, "Mirror_Replica": signer.field("GET", path, span)}


async def test_a_replica_needs_neither_network_nor_password(tmp_path, upstream):
    data = random_bytes(MIB)
    place = path(upstream.add_blob(data))
    cluster = Replicas(tmp_path, upstream, 1)
    try:
        mirror = await cluster.start(access={"networks": ["192.0.2.0/24"]})
        assert (await mirror.get(place)).status == 403
        answer = await mirror.get(place, **signed(place))
        assert (answer.status, answer.body) == (206, data)
    finally:
        await cluster.close()


@pytest.mark.parametrize(
    ("secret", "age", "place", "reason"),
    [
        ("another" * 8, 0, "", "have the same [cluster] secret_file?"),
        (SECRET, 3600, "", "do the clocks of all replicas agree?"),
        (SECRET, 0, "?ns=docker.io", "have the same [cluster] secret_file?"),
    ],
)
async def test_a_wrong_signature_is_refused(tmp_path, upstream, secret, age, place, reason):
    digest = upstream.add_blob(random_bytes(MIB))
    async with replicas(tmp_path, upstream, count=1) as cluster:
        fields = signed(path(digest), secret, time.time() - age)
        answer = await cluster.mirrors[0].get(path(digest) + place, **fields)
    assert answer.status == 403
    assert reason in answer.body.decode()
    assert upstream.count("blob") == 0


@pytest.mark.parametrize(
    "fields",
    [
        {"Mirror-Replica": "\udcff\udcfe 1"},
        {"Mirror-Replica": "1 2", "Range": "\udcff"},
        {"Mirror-Replica": "1 \udcff"},
    ],
)
async def test_a_signature_of_bytes_that_are_no_text_is_refused(tmp_path, upstream, fields):
    place = path(upstream.add_blob(random_bytes(MIB)))
    head = f"GET {place} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
    head += "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    async with replicas(tmp_path, upstream, count=1) as cluster:
        host, _, port = cluster.mirrors[0].url.removeprefix("http://").partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(f"{head}\r\n".encode(errors="surrogateescape"))
        async with limit():
            assert b" 403 " in await reader.readline()
        writer.close()


async def test_a_mirror_without_a_cluster_ignores_signatures(tmp_path, upstream):
    data = random_bytes(MIB)
    digest = upstream.add_blob(data)
    async with running(tmp_path / "cache", {"docker.io": upstream.url}) as mirror:
        answer = await mirror.get(path(digest), **signed(path(digest), "another"))
    assert (answer.status, answer.body) == (206, data)


class Odd:
    """A replica that answers requests for blobs as the test says, and leads no download."""

    def __init__(self, answer: Callable[[bytes], web.StreamResponse]) -> None:
        self.port = free_port()
        self.asked = 0
        self.answer = answer
        self.data = b""
        self.lives = True
        self.probed = False
        self.held, self.heads = asyncio.Event(), asyncio.Event()
        self.held.set()
        self.heads.set()

    async def __aenter__(self) -> "Odd":
        runner = self._runner = web.ServerRunner(web.Server(self._handle), shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", self.port).start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.path == "/healthz":
            self.probed = True
            if not self.lives:
                await self.held.wait()
            return web.Response()
        if request.method == "HEAD":
            await self.heads.wait()
            return web.Response(status=421)
        self.asked += 1
        await self.held.wait()
        if request.path == "/elsewhere":  # a replica could lead a mirror to any server
            return web.Response(body=self.data)
        return self.answer(self.data)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


def _whole(data: bytes) -> web.Response:
    return web.Response(body=data)


def flipped(data: bytes) -> bytes:
    return data[:100] + bytes([data[100] ^ 1]) + data[101:]


@asynccontextmanager
async def beside(odd: Odd, directory, upstream, **sections) -> AsyncIterator[tuple[Odd, Mirror]]:
    """A mirror whose only other replica is an odd one."""
    async with odd:
        cluster = Replicas(directory, upstream, 1)
        try:
            yield odd, await cluster.start(peers=[odd.url], **sections)
        finally:
            await cluster.close()


def led_by(odd: Odd, mirror: Mirror, upstream, size: int) -> str:
    """The path of a blob whose download the odd replica is to lead."""
    for more in range(100):
        odd.data = random_bytes(size + more)
        digest = digest_of(odd.data)
        order = [
            hashlib.sha256(f"{url} {digest}".encode()).digest() for url in (odd.url, mirror.url)
        ]
        if order[0] < order[1]:
            return path(upstream.add_blob(odd.data))
    raise AssertionError("one of two addresses always comes first")


@pytest.mark.parametrize(
    "answer",
    [
        lambda data: web.Response(status=500),
        lambda data: web.Response(status=421),
        lambda data: web.Response(status=307, headers={"Location": "/elsewhere"}),
        lambda data: web.Response(status=206, body=data),
        lambda data: web.Response(
            status=206, body=data[1:], headers={"Content-Range": f"bytes 1-{len(data) - 1}/*"}
        ),
        lambda data: web.Response(body=b""),
        lambda data: web.Response(body=data[:1000]),
        lambda data: web.Response(body=flipped(data)),
    ],
)
async def test_after_an_odd_answer_of_a_replica_upstream_is_asked(tmp_path, upstream, answer):
    """A small blob: no byte of it leaves before the verification."""
    async with beside(Odd(answer), tmp_path, upstream) as (odd, mirror):
        got = await mirror.get(led_by(odd, mirror, upstream, 60_000))
    assert got.body == odd.data
    assert (odd.asked, upstream.count("blob", "GET")) == (1, 1)


async def test_wrong_bytes_of_a_replica_reach_no_client_whole(tmp_path, upstream, caplog):
    wrong = Odd(lambda data: web.Response(body=flipped(data)))
    async with beside(wrong, tmp_path, upstream) as (odd, mirror):
        place = led_by(odd, mirror, upstream, 2 * MIB)
        with pytest.raises(aiohttp.ClientPayloadError):
            await mirror.get(place)
        assert upstream.count("blob") == 0
        assert (await mirror.get(place)).body == odd.data
    assert (odd.asked, upstream.count("blob", "GET")) == (1, 1)
    assert f"{odd.url} has other bytes than" in caplog.text
    assert "check the registry" not in caplog.text


async def test_a_replica_that_breaks_off_is_replaced_at_that_byte(tmp_path, upstream):
    def answer(data: bytes) -> web.Response:
        fields = {"Content-Range": f"bytes 0-{len(data) - 1}/{len(data)}"}
        return web.Response(status=206, body=data[:-100_000], headers=fields)

    async with beside(Odd(answer), tmp_path, upstream) as (odd, mirror):
        place = led_by(odd, mirror, upstream, MIB)
        assert (await mirror.get(place)).body == odd.data
    seen = next(each for each in upstream.seen if each.kind == "blob")
    assert seen.headers["Range"] == f"bytes={len(odd.data) - 100_000}-"


class Endless(Odd):
    """A replica that sends zeros in place of blobs; ``sent`` counts their bytes."""

    size: int | None = None
    sent = 0

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.path == "/healthz" or request.method == "HEAD":
            return await super()._handle(request)
        self.asked += 1
        response = web.StreamResponse()
        response.content_length = self.size
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            while self.sent < 512 * MIB:
                await response.write(bytes(MIB))
                self.sent += MIB
        return response


@pytest.mark.parametrize("size", [None, 1 << 40])
async def test_a_replica_that_sends_more_than_the_largest_blob_is_replaced(
    tmp_path, upstream, size
):
    """Without a limit, a replica could evict everything with one blob."""
    endless = Endless(_whole)
    endless.size = size
    limits = {"max_blob_size": "4MiB"}
    async with beside(endless, tmp_path, upstream, fetch=limits) as (odd, mirror):
        place = led_by(odd, mirror, upstream, MIB)
        if size is None:
            with pytest.raises(aiohttp.ClientPayloadError):
                await mirror.get(place)
        assert (await mirror.get(place)).body == odd.data
    assert odd.asked == 1
    assert endless.sent < 256 * MIB  # buffers of a busy machine


@pytest.mark.long
@pytest.mark.parametrize("headers", [False, True])
async def test_a_replica_that_lives_but_sends_next_to_nothing_is_replaced(
    tmp_path, upstream, headers
):
    class Trickling(Odd):
        async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
            if request.path == "/healthz" or request.method == "HEAD":
                return await super()._handle(request)
            if not headers:
                await self.held.wait()
            response = web.StreamResponse()
            response.content_length = len(self.data)
            await response.prepare(request)
            with contextlib.suppress(ConnectionError):
                for each in self.data:
                    await response.write(bytes([each]))
                    await asyncio.sleep(1)
            return response

    async with beside(Trickling(_whole), tmp_path, upstream) as (odd, mirror):
        odd.held.clear()
        async with limit():
            assert (await mirror.get(led_by(odd, mirror, upstream, MIB))).body == odd.data
        odd.held.set()
    assert upstream.count("blob", "GET") == 1


async def test_a_replica_that_is_slow_but_lives_is_waited_for(tmp_path, upstream):
    async with beside(Odd(_whole), tmp_path, upstream) as (odd, mirror):
        place = led_by(odd, mirror, upstream, MIB)
        odd.held.clear()
        asked = asyncio.create_task(mirror.get(place))
        await until(
            lambda: odd.probed
        )  # it was silent for some time, and was asked whether it lives
        odd.held.set()
        assert (await asked).body == odd.data
    assert upstream.count("blob") == 0


async def test_a_replica_that_hangs_is_replaced(tmp_path, upstream):
    async with beside(Odd(_whole), tmp_path, upstream) as (odd, mirror):
        place = led_by(odd, mirror, upstream, MIB)
        odd.held.clear()
        odd.lives = False
        async with limit():
            assert (await mirror.get(place)).body == odd.data
        place = led_by(odd, mirror, upstream, 2 * MIB)
        assert (await mirror.get(place)).body == odd.data
        assert odd.asked == 1  # it is not asked again for some time
        odd.held.set()
    assert upstream.count("blob", "GET") == 2


async def test_a_replica_that_does_not_say_whether_it_leads_is_not_asked_for_the_blob(
    tmp_path, upstream
):
    async with beside(Odd(_whole), tmp_path, upstream) as (odd, mirror):
        odd.heads.clear()
        async with limit():
            assert (await mirror.get(led_by(odd, mirror, upstream, MIB))).body == odd.data
        odd.heads.set()
    assert (odd.asked, upstream.count("blob", "GET")) == (0, 1)


async def test_names_lead_to_all_their_addresses(tmp_path, upstream):
    """Kubernetes' headless Services have one name for all replicas."""
    async with Odd(_whole) as odd:
        cluster = Replicas(tmp_path, upstream, 1)
        try:
            names = [f"dns:localhost:{odd.port}", "dns:nowhere.invalid:5000"]
            mirror = await cluster.start(peers=names)
            place = led_by(odd, mirror, upstream, MIB)
            assert (await mirror.get(place)).body == odd.data
        finally:
            await cluster.close()
    assert odd.asked == 1


def blob_for(replicas: Replicas, number: int, seed: int) -> bytes:
    """A blob that a replica is to download for all, as the others find by its hash."""
    found = (random_bytes(MIB, seed + each) for each in range(1000))
    leader = replicas.addresses[number]

    def first(digest: str) -> str:
        weight = {a: hashlib.sha256(f"{a} {digest}".encode()).digest() for a in replicas.addresses}
        return min(weight, key=weight.__getitem__)

    return next(data for data in found if first(digest_of(data)) == leader)


async def place_of(cluster: Replicas, upstream: FakeRegistry, asked: int, seed: int) -> str:
    """Where the replica ``asked`` gets a blob that the other one is to download."""
    data = blob_for(cluster, 1 - asked, seed)
    answer = await cluster.mirrors[asked].get(path(upstream.add_blob(data)))
    assert answer.body == data
    return answer.headers["Cache-Status"].removeprefix("mirror; fwd=miss; stored")


@pytest.mark.usefixtures("log")
async def test_a_reload_changes_the_replicas_that_a_replica_knows(tmp_path, upstream):
    cluster = Replicas(tmp_path, upstream, 2)
    try:
        await cluster.start(peers=cluster.addresses[:1])
        await cluster.start()
        assert await place_of(cluster, upstream, 0, 1000) == ""
        await cluster.reload(0)
        assert await place_of(cluster, upstream, 0, 2000) == "; detail=replica"
        await cluster.reload(0, peers=cluster.addresses[:1])
        assert await place_of(cluster, upstream, 0, 3000) == ""
    finally:
        await cluster.close()


@pytest.mark.usefixtures("log")
async def test_replicas_get_another_secret_one_after_the_other(tmp_path, upstream):
    async with replicas(tmp_path, upstream, count=2) as cluster:
        for number, seed in ((0, 1000), (1, 2000)):
            another = "another secret!!" * 4
            cluster.secret.write_text(another)
            place = path(upstream.add_blob(random_bytes(MIB)))
            assert (
                await cluster.mirrors[number].get(place, **signed(place, another))
            ).status == 403
            await cluster.reload(number)
            for secret in (SECRET, another):
                answer = await cluster.mirrors[number].get(place, **signed(place, secret))
                assert answer.status == 206
            for asked in (0, 1):
                place = await place_of(cluster, upstream, asked, seed * (1 + asked))
                assert place == "; detail=replica"


def test_a_former_secret_signs_for_a_while_and_is_accepted_for_twice_as_long():
    now = [0.0]
    own, other = (Secret(b"old", lambda: now[0]) for _ in range(2))
    old, new = Secret(b"old").sign("x"), Secret(b"new").sign("x")
    assert not own.change(b"old")
    assert own.change(b"new")
    for now[0], signed, accepted in (0, old, True), (301, new, True), (601, new, False):
        assert own.sign("x") == signed
        assert (own.knows(new, "x"), own.knows(old, "x")) == (True, accepted)
        assert (other.knows(new, "x"), other.knows("\ud800", "x")) == (False, False)
    own.change(b"newer")
    assert own.sign("x") == new
    own.change(b"newest")
    assert own.sign("x") == new


async def test_a_name_that_a_reload_adds_is_looked_up():
    trust = ssl.create_default_context()
    opening = opened_peers(Secret(b"secret"), "http://a:1", (), trust, Events())
    async with opening as peers:
        peers.use(["dns:localhost:5000"])
        await until(lambda: "http://127.0.0.1:5000" in peers.in_order(Digest.of(b"")))
        peers.use(["http://b:1"])
        assert set(peers.in_order(Digest.of(b""))) == {"http://a:1", "http://b:1"}
