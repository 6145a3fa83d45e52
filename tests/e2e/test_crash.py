"""SIGKILL, again and again, at moments drawn at random: what is served and what is left.

``CRASH_KILLS=500`` kills so often, ``CRASH_SEED`` repeats a run.
"""

import asyncio
import contextlib
import hashlib
import logging
import os
import random
import sqlite3
import statistics
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from mirror.config import load as configured
from mirror.config.upstreams import WELL_KNOWN
from mirror.oci.digest import Digest
from mirror.server import serving
from mirror.store.local.layout import BLOBS, MANIFESTS, Layout, ObjectKey
from tests.fakes import FakeRegistry, random_bytes
from tests.fakes.content import OCI_MANIFEST, image
from tests.fakes.faults import Fault
from tests.peers.crashing import Nursery, corrupt, disagreements, under_way
from tests.peers.mirror import MirrorProcess
from tests.peers.process import free_port
from tests.waiting import limit

pytestmark = [pytest.mark.slow, pytest.mark.long]


KIB, MIB = 1 << 10, 1 << 20
KILLS = int(os.environ.get("CRASH_KILLS", "50"))
CLIENTS = 8
MAX_SIZE = 24 * MIB
SLACK = 64 * KIB  # manifests on their way have made room, but reserve none
LONGEST_LIFE = 0.4
LEAST_HITS = 3  # of each kind of moment; fewer would mean that the test no longer aims
MOMENTS = ("start", "fill", "adopt", "evict")


@dataclass(frozen=True)
class Item:
    """Something to fetch, and what it must be."""

    path: str
    data: bytes
    headers: dict[str, str]


def filled(upstream: FakeRegistry, rng: random.Random) -> list[Item]:
    """Give upstream more blobs than the cache can hold, and manifests; the ways to ask for them."""
    items = []
    for number in range(48):
        data = random_bytes(int(64 * KIB * 48 ** rng.random()), seed=number)
        items.append(Item(f"/v2/library/app/blobs/{upstream.add_blob(data)}", data, {}))
    for number in range(16):
        manifest = image(marker=f"{number}" * 50).manifest
        digest = upstream.add_manifest("library/app", manifest, OCI_MANIFEST, f"v{number}")
        # A picky client's fetch is one of its own: the same manifest may be stored twice.
        for reference in (digest, f"v{number}"):
            path = f"/v2/library/app/manifests/{reference}"
            items += [Item(path, manifest, {}), Item(path, manifest, {"Accept": OCI_MANIFEST})]
    return items


@dataclass
class Load:
    """Clients that fetch what comes to mind as long as they are let."""

    url: str
    items: list[Item]
    session: aiohttp.ClientSession
    wrong: list[str] = field(default_factory=list)
    answers: Counter[str] = field(default_factory=Counter)
    _let: asyncio.Event = field(default_factory=asyncio.Event)
    _busy: int = 0

    def begin(self) -> None:
        self._let.set()

    async def end(self) -> None:
        """No more requests, and none under way."""
        self._let.clear()
        async with limit():
            while self._busy:
                await asyncio.sleep(0.001)

    async def client(self, rng: random.Random) -> None:
        while True:
            await self._let.wait()
            self._busy += 1
            try:
                await self._fetch(rng.choice(self.items), rng)
            except (aiohttp.ClientError, ConnectionError):
                self.answers["broken"] += 1
                await asyncio.sleep(0.002)
            finally:
                self._busy -= 1

    async def _fetch(self, item: Item, rng: random.Random) -> None:
        start = (
            rng.randrange(len(item.data)) if "/blobs/" in item.path and rng.random() < 0.2 else 0
        )
        headers = {**item.headers, "Range": f"bytes={start}-"} if start else item.headers
        async with self.session.get(self.url + item.path, headers=headers) as response:
            body = await response.read()
        expected = item.data[start:] if response.status == 206 else item.data
        self.answers[f"{response.status}"] += 1
        if response.status not in {200, 206}:
            self.wrong.append(f"{item.path}: {response.status} {body[:200]!r}")
        elif hashlib.sha256(body).digest() != hashlib.sha256(expected).digest():
            self.wrong.append(f"{item.path} from {start}: {len(body)} wrong bytes")


@asynccontextmanager
async def loading(url: str, items: list[Item], rng: random.Random) -> AsyncIterator[Load]:
    async with aiohttp.ClientSession(auto_decompress=False) as session:
        load = Load(url, items, session)
        clients = [
            asyncio.create_task(load.client(random.Random(rng.random()))) for _ in range(CLIENTS)
        ]
        try:
            yield load
        finally:
            for client in clients:
                client.cancel()
            await asyncio.gather(*clients, return_exceptions=True)


async def ready(session: aiohttp.ClientSession, url: str) -> None:
    async with limit():
        while True:
            with contextlib.suppress(aiohttp.ClientError, ConnectionError):
                async with session.get(f"{url}/readyz") as response:
                    if response.status == 200:
                        return
            await asyncio.sleep(0.005)


def configuration(root: Path, port: int, upstream: str) -> dict[str, Any]:
    # Without the public registries: each costs a start some 20 ms for certificates of its own.
    upstreams: dict[str, Any] = {name: {"enabled": False} for name in WELL_KNOWN}
    return {
        "server": {"listen": f"127.0.0.1:{port}"},
        "log": {"level": "warning", "access": False},
        "cache": {"directory": str(root), "max_size": str(MAX_SIZE), "min_free": "0"},
        "upstreams": upstreams | {"docker.io": {"url": upstream}},
    }


@dataclass
class Killing:
    """Start, load, kill: what came of each round."""

    root: Path
    tree: dict[str, Any]
    nursery: Nursery
    load: Load
    rng: random.Random
    landed: Counter[str] = field(default_factory=Counter)
    starts: list[float] = field(default_factory=list)

    async def round(self) -> None:
        """One life of the mirror, and its end: a quarter of them end before they are ready."""
        began = time.monotonic()
        self.nursery.start(self.rng.getrandbits(32))
        if self.starts and self.rng.random() < 0.25:
            await self._kill(self.rng.uniform(0, statistics.median(self.starts)))
            self.landed["start"] += 1
            return
        await ready(self.load.session, self.load.url)
        self.starts.append(time.monotonic() - began)
        self.check()
        self.load.begin()
        # On a busy machine all takes longer, so the moments are drawn from a longer time.
        longest = max(LONGEST_LIFE, statistics.median(self.starts))
        await self._kill(self.rng.uniform(0, longest))
        self.landed.update(under_way(self.root).keys() or {"nothing"})
        assert self.load.wrong == []
        if self.rng.random() < 0.25:
            await self.start_and_stop()

    async def _kill(self, after: float) -> None:
        await asyncio.to_thread(self.nursery.kill, after)
        await self.load.end()

    async def start_and_stop(self) -> None:
        """The other way to look at it: when the mirror has been started and stopped in order."""
        async with serving(configured(None, self.tree), asyncio.Event()):
            pass
        self.check()

    def is_enough(self, number: int) -> bool:
        """Whether after so many kills each kind of moment was hit often enough."""
        aimed = all(self.landed[moment] >= LEAST_HITS for moment in MOMENTS)
        return number >= KILLS and (aimed or number >= 3 * KILLS)

    def check(self) -> None:
        """After a repair and before any load: nothing else touches the directory."""
        assert disagreements(self.root, MAX_SIZE + SLACK) == []


async def test_kills_under_load_leave_nothing_wrong(tmp_path, caplog):
    # The registry's server logs every download that a dead mirror no longer takes.
    caplog.set_level(logging.CRITICAL, "aiohttp.server")
    seed = int(os.environ.get("CRASH_SEED") or random.SystemRandom().getrandbits(32))
    print(f"CRASH_SEED={seed}")
    rng = random.Random(seed)
    root, log, port = tmp_path / "cache", tmp_path / "log", free_port()
    # Slow enough that the larger blobs outlive the mirror.  Without the digest in its answer to
    # HEAD, a manifest is fetched and stored again for every question after a tag.
    upstream = FakeRegistry(
        rate_per_connection=16 * MIB,
        faults=[Fault("manifest", "HEAD", 1 << 30, headers={"Docker-Content-Digest": None})],
    )
    items = filled(upstream, rng)
    async with upstream:
        tree = configuration(root, port, upstream.url)
        with Nursery(tree, log) as nursery:
            async with loading(f"http://127.0.0.1:{port}", items, rng) as load:
                killing = Killing(root, tree, nursery, load, rng)
                kills = 0
                while not killing.is_enough(kills):
                    await killing.round()
                    kills += 1
                    if kills % 10 == 0:
                        assert corrupt(root) == []
        await killing.start_and_stop()
        assert corrupt(root) == []
    print(f"{kills} kills; under way then: {dict(killing.landed)}")
    print(f"answers: {dict(load.answers)}; median start {statistics.median(killing.starts):.3f} s")
    assert "Traceback" not in log.read_text()
    assert load.answers["200"] > KILLS
    assert all(killing.landed[moment] >= LEAST_HITS for moment in MOMENTS)


OBJECTS = 2000
STARTS = 2
LEFT = 20  # of each kind of thing that a crash leaves


def test_what_many_crashes_left_is_put_right_by_the_next_start(tmp_path):
    """How long a start takes with a million objects is for `make bench` (million)."""
    start_and_kill(tmp_path)
    layout = Layout(tmp_path / "cache")
    stored = store_many(layout)
    for number in range(STARTS):
        unknown = [named(f"{number} {item}") for item in range(2 * LEFT)]
        leave_as_after_a_crash(layout, stored[:LEFT], unknown[:LEFT], unknown[LEFT:])
        start_and_kill(tmp_path)
    assert disagreements(layout.root, 1 << 30) == []
    with contextlib.closing(sqlite3.connect(layout.root / "cache.db")) as database:
        (count,) = database.execute("SELECT COUNT(*) FROM Cache").fetchone()
    assert count == OBJECTS + STARTS * LEFT


def start_and_kill(directory: Path) -> None:
    """Start the program, and kill it as soon as it says that it is ready."""
    mirror = MirrorProcess(directory, {}, measured=False)
    mirror.start()
    mirror.kill()


def named(content: str) -> tuple[str, str]:
    """The key of an object and a name for its file."""
    key = ObjectKey(MANIFESTS if content.endswith("0") else BLOBS, Digest.of(content.encode()))
    return str(key), key.new_name()


def store_many(layout: Layout) -> list[tuple[str, str]]:
    """What so many adoptions would have stored, in one transaction."""
    objects = [named(str(number)) for number in range(OBJECTS)]
    for directory in {name.rpartition("/")[0] for _, name in objects}:
        (layout.root / directory).mkdir(parents=True, exist_ok=True)
    for _, name in objects:
        os.close(os.open(layout.root / name, os.O_CREAT | os.O_WRONLY, 0o600))
    with contextlib.closing(sqlite3.connect(layout.root / "cache.db")) as database, database:
        database.executemany(
            "INSERT INTO Cache (key, raw, store_time, access_time, size, mode, filename, value)"
            ' VALUES (?, 1, 1e9, 1e9, 0, 2, ?, \'{"size": 0, "mediaType": ""}\')',
            objects,
        )
    return objects


def leave_as_after_a_crash(
    layout: Layout, stored: list[tuple[str, str]], *unknown: list[tuple[str, str]]
) -> None:
    """Evictions that did not get to their rows, some that did, adoptions that did not; fills."""
    evicted, adopted = unknown
    for key, name in stored:
        os.link(layout.root / name, pending(layout, "evict", key, name))
    for key, name in evicted:
        (layout.root / name).parent.mkdir(parents=True, exist_ok=True)
        (layout.root / name).write_bytes(b"content")
        os.link(layout.root / name, pending(layout, "evict", key, name))
    for key, name in adopted:
        pending(layout, "adopt", key, name).write_bytes(b"content")
        (layout.partial / key).write_bytes(bytes(64 * KIB))


def pending(layout: Layout, act: str, key: str, name: str) -> Path:
    return layout.pending / f"{act}.{key}.{name.rpartition('.')[2]}"
