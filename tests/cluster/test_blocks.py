"""Blocks of commands on all replicas, also on those that were down."""

import asyncio
import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from mirror.admin.commands import blocked, unblocked
from mirror.api.v1 import REPLICA_BLOCKS
from mirror.cluster.blocks import SharedBlocks
from mirror.cluster.secret import Secret
from mirror.cluster.tier import TierError
from mirror.http.admission import content_digest
from mirror.oci.digest import Digest
from mirror.policy.blocks import Block
from mirror.store.metadata.operator_files import BlockFile
from tests.cluster.replicas import SECRET, Replicas, replicas
from tests.fakes import image
from tests.fakes.bucket import BUCKET
from tests.peers.process import free_port
from tests.running import Mirror, configured
from tests.transfer.commands import configured as config_file
from tests.transfer.commands import mirror as command
from tests.waiting import limit, until

REPO = "library/app"
APP = image(b"layer of the application", marker="app")
TAG = f"/v2/{REPO}/manifests/1"
TARGET = f"docker.io/{REPO}:1"
POSTED = "/api/v1/replica-blocks"


@pytest.fixture
def office(tmp_path, upstream):
    """The configuration for commands of the first replica."""
    upstream.add_image(REPO, APP, "1")
    return configured(tmp_path / "cache0", {"docker.io": upstream.url})


async def status(mirror: Mirror, path: str = TAG) -> int:
    return (await mirror.get(path)).status


async def becomes(mirror: Mirror, expected: int, path: str = TAG) -> None:
    async with limit():
        while await status(mirror, path) != expected:
            await asyncio.sleep(0.02)


@pytest.mark.slow
async def test_a_block_holds_on_all_replicas_until_it_is_removed_on_any(tmp_path, upstream, office):
    async with replicas(tmp_path, upstream, 3) as cluster:
        one, two, three = cluster.mirrors
        assert await status(two) == 200
        done = await blocked(office, ["app:1"], "CVE-1")
        assert done["cluster"] == {
            "here": cluster.addresses[0],
            "replicas": [
                {"replica": each, "error": None} for each in sorted(cluster.addresses[1:])
            ],
            "place": None,
            "place_error": None,
        }
        for each in cluster.mirrors:
            await becomes(each, 403)
        # The second replica has it in its cache, where its digest is known.
        await becomes(two, 403, f"/v2/{REPO}/manifests/{APP.digest}")
        assert b"CVE-1" in (await three.get(TAG)).body
        other = configured(tmp_path / "cache2", {"docker.io": upstream.url})
        await unblocked(other, ["app:1"])
        for each in (one, two, three):
            await becomes(each, 200)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bucket", "redis"])
async def test_a_replica_that_was_down_has_the_block_before_its_first_answer(
    tmp_path, upstream, office, kind, fake, redis
):
    places = {
        "bucket": {"objects": f"s3://{BUCKET}/cache", "endpoint": fake.url},
        "redis": {"state": redis.url},
    }
    cluster = Replicas(tmp_path, upstream, 2, **places[kind])
    try:
        await cluster.start()
        down = cluster.addresses[1]
        done = await blocked(office, ["app:1"], "")
        assert done["cluster"]["replicas"] == [
            {"replica": down, "error": f"{down} does not answer"}
        ]
        assert done["cluster"]["place_error"] is None
        assert await status(await cluster.start()) == 403
    finally:
        await cluster.close()


@pytest.mark.slow
async def test_only_a_replica_can_post_a_block(tmp_path, upstream, office):
    body = json.dumps({"records": [Block(TARGET, since=1.0).document()]}).encode()
    secret = Secret(SECRET.encode())
    digest = content_digest(body)
    signed = secret.field("POST", POSTED, digest)
    wrong = Secret(b"another" * 8).field("POST", POSTED, digest)
    tries = [
        ({}, body),
        ({"Content-Digest": digest}, body),
        ({"Content-Digest": digest, "Mirror-Replica": wrong}, body),
        ({"Content-Digest": digest, "Mirror-Replica": signed}, body.replace(b"app", b"arm")),
        ({"Mirror-Replica": secret.field("POST", POSTED, "")}, body),
        ({"Mirror-Replica": secret.field("GET", POSTED, digest), "Content-Digest": digest}, body),
    ]
    async with replicas(tmp_path, upstream, 1) as cluster:
        mirror = cluster.mirrors[0]

        async def posted(fields: dict[str, str], data: bytes) -> int:
            async with mirror.session.post(mirror.url + POSTED, data=data, headers=fields) as said:
                return said.status

        assert {await posted(*each) for each in tries} == {403}
        assert await status(mirror) == 200
        fields = {"Content-Digest": digest, "Mirror-Replica": signed}
        assert [await posted(fields, body) for _ in range(2)] == [200, 200]  # a replay adds nothing
        await becomes(mirror, 403)
        await unblocked(office, ["app:1"])
        assert await posted(fields, body) == 200  # nor does an old one
        await becomes(mirror, 200)
        no_records = b'{"records": [{"target": "app"}]}'
        digest = content_digest(no_records)
        fields = {"Content-Digest": digest, "Mirror-Replica": secret.field("POST", POSTED, digest)}
        assert await posted(fields, no_records) == 400
        (tmp_path / "cache0" / "blocks.json").write_text("damaged")
        digest = content_digest(body)
        fields = {"Content-Digest": digest, "Mirror-Replica": secret.field("POST", POSTED, digest)}
        assert await posted(fields, body) == 503


@dataclass
class Shelf:
    """A place in memory."""

    name: str = "shelf"
    text: str | None = None
    down: bool = False
    writes: int = 0

    async def read(self) -> str | None:
        if self.down:
            raise TierError("shelf does not answer")
        return self.text

    async def write(self, text: str) -> None:
        self.text = text
        self.writes += 1


class Replica:
    """The list of one replica, which compares it with the place when it is told to."""

    def __init__(self, directory: Path, place: Shelf, secret: str = SECRET) -> None:
        directory.mkdir()
        self.file = BlockFile(directory / "blocks.json")
        self.cached = frozenset[Digest]()
        self._turn = asyncio.Semaphore(0)
        self._idle = asyncio.Event()
        self._looks = 0

        async def parts(_: object) -> tuple[frozenset[Digest], frozenset[Digest]]:
            return self.cached, frozenset()

        signer = Secret(secret.encode())
        self.shared = SharedBlocks(self.file, parts, signer, place, None, self._sleep)
        self._task = asyncio.create_task(self.shared.run())

    async def _sleep(self, _: float) -> None:
        self._looks += 1
        await self._turn.acquire()

    async def look(self) -> None:
        await until(lambda: self._looks)
        looks = self._looks
        self._turn.release()
        await until(lambda: self._looks > looks)

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    def block(self, target: str = TARGET, since: float = 1_000.0, digests=frozenset()) -> None:
        added = Block(target, "", since, "me", digests)
        self.file.change(lambda former: [*(b for b in former if b.target != target), added])

    def unblock(self) -> None:
        self.file.change(lambda _: ())

    @property
    def targets(self) -> list[str]:
        return sorted(each.target for each in self.file.read())


@pytest.fixture
async def cluster(tmp_path):
    """Make replicas with one place; ``secret`` is that of the replica."""
    place, made = Shelf(), list[Replica]()

    def of(secret: str = SECRET) -> Replica:
        made.append(Replica(tmp_path / f"replica{len(made)}", place, secret))
        return made[-1]

    yield place, of
    for each in made:
        await each.close()


async def test_a_place_that_has_lost_all_loses_no_block(cluster):
    place, replica = cluster
    one, two = replica(), replica()
    one.block()
    await one.look()
    await two.look()
    place.text = None
    await one.look()
    assert one.targets == two.targets == [TARGET]
    assert (await replica().shared.share([]))["place_error"] is None
    writes = place.writes
    await two.look()
    assert place.writes == writes  # the place has all of it


async def test_a_replica_that_was_down_learns_that_a_block_was_removed(cluster):
    place, replica = cluster
    one, two = replica(), replica()
    one.block(since=9e9)  # its clock is fast
    await one.look()
    await two.look()
    two.unblock()
    place.text = None  # also if the place is lost
    await two.look()
    await one.look()
    assert one.targets == two.targets == []
    one.block()  # again, by a clock that is right
    await one.look()
    await two.look()
    assert one.targets == two.targets == [TARGET]


async def test_two_replicas_that_write_at_once_lose_nothing(cluster):
    place, replica = cluster
    one, two = replica(), replica()
    one.block()
    two.block("docker.io/library/other:1")
    await one.look()
    place.text = None  # the second one read it before the first one wrote
    for each in (two, one, two):
        await each.look()
    assert one.targets == two.targets == [TARGET, "docker.io/library/other:1"]


async def test_a_block_covers_what_any_replica_has_of_the_image(cluster):
    _, replica = cluster
    one, two, three = replica(), replica(), replica()
    first, second = Digest.of(b"1"), Digest.of(b"2")
    one.block(digests=frozenset({first}))
    two.cached = frozenset({second})
    for each in (one, two, three, one):
        await each.look()
    for each in (one, two, three):
        assert each.file.read()[0].digests == {first, second}


async def test_more_digests_than_are_shared_settle(cluster):
    place, replica = cluster
    one, two = replica(), replica()
    one.block(digests=frozenset(Digest.of(b"1%d" % n) for n in range(700)))
    two.cached = frozenset(Digest.of(b"2%d" % n) for n in range(700))
    for each in (one, two, one, two):
        await each.look()
    writes = place.writes
    for each in (one, two):
        await each.look()
    assert place.writes == writes


async def test_blocks_that_no_replica_has_signed_are_not_believed_and_replaced(cluster):
    place, replica = cluster
    stranger, one = replica("another" * 8), replica()
    stranger.block("docker.io/library/other:1")
    await stranger.look()
    one.block()
    await one.look()
    assert one.targets == [TARGET]
    assert '"docker.io/library/other:1"' not in (place.text or "")
    place.text = Secret(SECRET.encode()).sign("blocks", "nonsense") + "\nnonsense"
    await one.look()
    assert one.targets == [TARGET]


@pytest.mark.slow
async def test_the_body_of_a_stranger_is_not_waited_for(tmp_path, upstream):
    """A thousand strangers could fill the memory with bodies that do not end."""
    async with replicas(tmp_path, upstream, count=1) as running:
        host, _, port = running.mirrors[0].url.removeprefix("http://").partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(f"POST {REPLICA_BLOCKS} HTTP/1.1\r\nHost: x\r\n".encode())
        writer.write(b"Content-Length: 1000000\r\n\r\nthe first bytes")
        async with limit():
            assert b" 403 " in await reader.readline()
        writer.close()


async def test_a_place_that_is_down_is_told_later(cluster):
    place, replica = cluster
    one = replica()
    place.down = True
    one.block()
    assert (await one.shared.share([TARGET]))["place_error"] == "shelf does not answer"
    place.down = False
    await one.look()
    assert TARGET in (place.text or "")


@pytest.mark.long
@pytest.mark.slow
async def test_the_command_says_which_replicas_have_the_block(tmp_path, upstream, office):
    down = f"http://127.0.0.1:{free_port()}"
    cluster = Replicas(tmp_path, upstream, 1)
    try:
        await cluster.start([*cluster.addresses, down])
        secret = f'[cluster]\nsecret_file = "{tmp_path / "secret"}"\n'
        file = config_file(tmp_path, {"docker.io": upstream.url}, secret)
        options = ("--config", file, "--cache-dir", tmp_path / "cache0")
        done = await command("block", "app:1", *options)
        assert (done.code, done.out.splitlines()) == (
            0,
            [
                f"blocked {TARGET} (0 digests)",
                f"in force on {cluster.addresses[0]}",
                f"not yet on {down}: {down} does not answer",
                "without [cluster] objects or state: give the command again when they answer",
            ],
        )
        await cluster.stop(0)
        cluster.addresses.append(down)
        done = await command("unblock", "app:1", *options)
        assert done.out.splitlines() == [
            f"unblocked {TARGET}",
            "no mirror runs here: the other replicas learn of it when this one starts",
        ]
    finally:
        await cluster.close()
