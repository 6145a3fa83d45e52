"""One client, or one slow upstream, never takes what the others need."""

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from tests.fakes import FakeRegistry, Fault, random_bytes
from tests.pull.test_overload import told
from tests.running import Answer, Mirror, running
from tests.waiting import limit

pytestmark = [pytest.mark.slow]

SLOW, OTHER = "slow.example", "other.example"
BEHIND_A_PROXY = {"trusted_proxies": ["127.0.0.1"]}


async def until(condition: Callable[[], bool]) -> None:
    async with limit():
        while not condition():
            await asyncio.sleep(0.01)


@pytest.fixture
async def other() -> AsyncIterator[FakeRegistry]:
    async with FakeRegistry() as registry:
        yield registry


class Clients:
    """Clients at several addresses, each of whose pulls is of a blob of its own."""

    def __init__(self, mirror: Mirror) -> None:
        self._mirror = mirror
        self._pulls: list[asyncio.Task[Answer]] = []

    async def get(self, address: str, name: str, registry: FakeRegistry) -> Answer:
        digest = registry.add_blob(random_bytes(1000, registry.port << 16 | len(registry.blobs)))
        path = f"/v2/{name}/app/blobs/{digest}"
        return await self._mirror.get(path, X_Forwarded_For=address)

    def begin(self, count: int, address: str, name: str, registry: FakeRegistry) -> None:
        for _ in range(count):
            self._pulls.append(asyncio.create_task(self.get(address, name, registry)))

    async def leave(self) -> None:
        for pull in self._pulls:
            pull.cancel()
        await asyncio.gather(*self._pulls, return_exceptions=True)


async def test_a_slow_upstream_leaves_downloads_to_the_others(tmp_path, upstream, other):
    upstream.faults.append(Fault(hang_before=True, times=99))
    upstreams, limits = {SLOW: upstream.url, OTHER: other.url}, {"downloads": 8}
    async with running(tmp_path, upstreams, limits=limits, server=BEHIND_A_PROXY) as mirror:
        clients = Clients(mirror)
        for number in range(10):
            clients.begin(3, f"10.0.0.{number}", SLOW, upstream)
        await until(lambda: upstream.count("blob") == 6)
        for number in range(10):
            assert (await clients.get(f"10.0.1.{number}", OTHER, other)).status == 200
        assert upstream.count("blob") == 6, "three quarters of eight"
        await clients.leave()


async def test_a_client_leaves_downloads_to_the_others(tmp_path, upstream, other):
    upstream.faults.append(Fault(hang_before=True, times=99))
    upstreams, limits = {SLOW: upstream.url, OTHER: other.url}, {"downloads": 8}
    async with running(tmp_path, upstreams, limits=limits, server=BEHIND_A_PROXY) as mirror:
        clients = Clients(mirror)
        clients.begin(30, "2001:db8::1", SLOW, upstream)
        clients.begin(30, "2001:db8::2", SLOW, upstream)  # the same /64: the same client
        await until(lambda: upstream.count("blob") == 4)
        for _ in range(10):
            assert (await clients.get("10.0.0.1", OTHER, other)).status == 200
        assert upstream.count("blob") == 4, "half of eight"
        await clients.leave()


async def test_clients_take_turns_however_many_downloads_each_waits_for(tmp_path, upstream):
    upstream.rate_per_connection = 20_000  # 50 ms each
    limits = {"downloads": 1}
    upstreams = {SLOW: upstream.url}
    async with running(tmp_path, upstreams, limits=limits, server=BEHIND_A_PROXY) as mirror:
        clients = Clients(mirror)
        clients.begin(40, "10.0.0.1", SLOW, upstream)
        await until(lambda: upstream.count("blob") >= 1)
        late = asyncio.create_task(clients.get("10.0.0.2", SLOW, upstream))
        assert (await late).status == 200
        assert upstream.count("blob") < 40
        await clients.leave()


@pytest.mark.parametrize(
    ("addresses", "reason"),
    [
        (1, "10.0.0.0 holds 4 of its share of 4: [limits] client_share"),
        (8, f"{SLOW} holds 6 of its share of 6: [limits] upstream_share"),
    ],
)
async def test_a_refusal_names_what_is_at_its_limit(tmp_path, upstream, addresses, reason):
    upstream.faults.append(Fault(hang_before=True, times=99))
    limits = {"downloads": 8, "queue_timeout": "200ms"}
    upstreams = {SLOW: upstream.url}
    async with running(tmp_path, upstreams, limits=limits, server=BEHIND_A_PROXY) as mirror:
        clients = Clients(mirror)
        clients.begin(8, "10.0.0.0", SLOW, upstream)
        for number in range(1, addresses):
            clients.begin(8, f"10.0.0.{number}", SLOW, upstream)
        await until(lambda: upstream.count("blob") == (4 if addresses == 1 else 6))
        address = "10.0.0.0" if addresses == 1 else "10.0.1.1"
        assert reason in told(await clients.get(address, SLOW, upstream))
        await clients.leave()


async def test_a_client_leaves_places_in_line_to_the_others(tmp_path, upstream, other):
    upstream.faults.append(Fault(hang_before=True, times=99))
    upstreams = {SLOW: upstream.url, OTHER: other.url}
    limits = {"downloads": 8, "queue": 8}
    async with running(tmp_path, upstreams, limits=limits, server=BEHIND_A_PROXY) as mirror:
        clients = Clients(mirror)
        clients.begin(30, "10.0.0.1", SLOW, upstream)
        await until(lambda: upstream.count("blob") == 4)
        said = told(await clients.get("10.0.0.1", SLOW, upstream))
        assert "too many downloads wait already (10.0.0.1 holds 4" in said
        assert (await clients.get("10.0.0.2", OTHER, other)).status == 200
        await clients.leave()


async def test_the_operators_own_pulls_are_those_of_one_client(tmp_path, upstream, other):
    upstream.faults.append(Fault(hang_before=True, times=99))
    upstreams = {SLOW: upstream.url, OTHER: other.url}
    socket = tmp_path / "mirror.sock"
    server = {"listen": ["127.0.0.1:0", f"unix:{socket}"], **BEHIND_A_PROXY}
    async with running(tmp_path, upstreams, limits={"downloads": 8}, server=server) as mirror:
        connections = []
        for number in range(10):
            digest = upstream.add_blob(random_bytes(1000, number))
            _, writer = await asyncio.open_unix_connection(socket)
            writer.write(f"GET /v2/{SLOW}/app/blobs/{digest} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            connections.append(writer)
        await until(lambda: upstream.count("blob") == 4)
        assert (await Clients(mirror).get("10.0.0.1", OTHER, other)).status == 200
        assert upstream.count("blob") == 4
        for writer in connections:
            writer.close()
