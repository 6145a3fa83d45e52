"""The disk in trouble: what is found again, what is dropped, what goes on without it."""

import asyncio
import contextlib
import errno
import logging
import os
import shutil
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mirror.oci.digest import Digest
from mirror.oci.manifest import Descriptor
from mirror.oci.media_types import OCI_MANIFEST
from mirror.store.interface import IndexUnavailableError, Link, Manifest
from mirror.store.local.background import Scrub
from mirror.store.local.content import Blobs, Manifests
from mirror.store.local.disk_usage import DiskHealth, in_blocks
from mirror.store.local.eviction import Limits
from mirror.store.local.layout import BLOBS, Layout, ObjectKey
from mirror.store.local.objects import Objects
from mirror.store.metadata.kv import KeyValueStore
from mirror.store.metadata.records import Tags
from tests.store.local.test_eviction import Evictions
from tests.store.local.test_objects import BODY, MANIFEST

CONTENTS = [b"first" * 1000, b"second" * 1000, b"third" * 1000]


@pytest.fixture
def threads():
    with ThreadPoolExecutor(2) as threads:
        yield threads


class Store:
    """Objects, blobs and manifests of one directory."""

    def __init__(self, layout: Layout, threads: ThreadPoolExecutor) -> None:
        self.layout = layout
        self.objects = Objects(layout, Limits(10_000_000, 0), Evictions(), threads)
        self.blobs = Blobs(layout, self.objects, threads)
        self.manifests = Manifests(layout, self.objects, threads)

    async def __aenter__(self):
        await self.objects.open()
        return self

    async def __aexit__(self, *_):
        await self.objects.close()

    async def keep(self, content: bytes) -> Digest:
        digest = Digest.of(content)
        partial = await self.blobs.stage(digest)
        try:
            await partial.append([content])
            await partial.adopt()
        finally:
            await partial.release()
        return digest

    async def read(self, content: bytes) -> bytes | None:
        stored = await self.blobs.lookup(Digest.of(content))
        if stored is None:
            return None
        try:
            return stored.read()
        finally:
            stored.close()

    async def found_again(self) -> None:
        for _ in range(500):
            if not self.layout.rebuild.exists():
                return
            await self.objects.heal()
        raise AssertionError("it never ends")

    def file_of(self, content: bytes):
        name = Digest.of(content).hex
        (file,) = (self.layout.root / BLOBS).rglob(f"{name}.*")
        return file


@pytest.fixture
async def filled(layout, threads):
    """A directory with three blobs and a manifest, and nobody at work in it."""
    async with Store(layout, threads) as store:
        for content in CONTENTS:
            await store.keep(content)
        await store.manifests.put(MANIFEST)
    return layout


def remove_database(layout: Layout) -> None:
    for file in layout.root.glob("cache.db*"):
        file.unlink()


def damage_database(layout: Layout) -> None:
    remove_database(layout)
    (layout.root / "cache.db").write_bytes(b"this is no database" * 1000)


@pytest.mark.parametrize("harm", [remove_database, damage_database])
async def test_a_lost_index_is_made_again_from_the_files(filled, threads, harm):
    harm(filled)
    async with Store(filled, threads) as store:
        await store.found_again()
        assert [await store.read(content) for content in CONTENTS] == CONTENTS
        assert await store.manifests.lookup(MANIFEST.digest) == MANIFEST
        assert (await store.objects.usage()).objects == 4
        assert (await store.objects.usage()).used_bytes == sum(
            in_blocks(len(each), 4096) for each in [*CONTENTS, BODY]
        )


async def test_what_is_found_again_is_verified_before_it_is_served(filled, threads):
    remove_database(filled)
    async with Store(filled, threads) as store:
        await store.found_again()
        file = store.file_of(CONTENTS[0])
        data = bytearray(file.read_bytes())
        data[100] ^= 1
        file.write_bytes(data)
        assert await store.read(CONTENTS[0]) is None
        assert await store.read(CONTENTS[1]) == CONTENTS[1]
        assert not file.exists()


async def test_finding_again_goes_on_after_a_crash_in_the_middle(filled, threads):
    """The mark stays until all files were seen, whatever the database says meanwhile."""
    remove_database(filled)
    filled.rebuild.touch()
    async with Store(filled, threads) as store:
        await store.found_again()
        assert (await store.objects.usage()).objects == 4
    assert not filled.rebuild.exists()


async def test_a_file_that_was_replaced_while_its_row_was_lost_goes(filled, threads):
    former = next((filled.root / BLOBS).rglob(f"{Digest.of(CONTENTS[0]).hex}.*"))
    remove_database(filled)
    filled.rebuild.touch()
    async with Store(filled, threads) as store:
        store.objects._rebuilding.cancel()
        await store.keep(CONTENTS[0])
        await store.found_again()
        assert not former.exists()
        assert await store.read(CONTENTS[0]) == CONTENTS[0]
        assert (await store.objects.usage()).objects == 4


async def test_a_foreign_file_is_left_alone(filled, threads):
    foreign = filled.root / BLOBS / "sha256" / "ab" / "README"
    foreign.parent.mkdir(exist_ok=True)
    foreign.write_text("mine")
    remove_database(filled)
    async with Store(filled, threads) as store:
        await store.found_again()
        assert (await store.objects.usage()).objects == 4
    assert foreign.exists()


async def test_a_blob_flipped_behind_our_back_is_a_miss_and_dropped(filled, threads):
    async with Store(filled, threads) as store:
        file = store.file_of(CONTENTS[0])
        with file.open("r+b") as opened:
            opened.write(b"F")
        assert await store.read(CONTENTS[0]) is None
        assert not file.exists()
        assert (await store.objects.usage()).objects == 3


class CountingThreads(ThreadPoolExecutor):
    """Counts the pieces of work; a lookup has none except to hash."""

    works = 0

    def submit(self, *work, **options):
        self.works += 1
        return super().submit(*work, **options)


async def test_a_blob_that_was_only_touched_is_verified_once_and_served(filled):
    with CountingThreads(1) as threads:
        async with Store(filled, threads) as store:
            os.utime(store.file_of(CONTENTS[0]))
            for _ in range(3):
                assert await store.read(CONTENTS[0]) == CONTENTS[0]
            assert threads.works == 1


async def test_a_row_of_version_0_1_is_verified_once(filled, threads):
    """Its rows do not say when a file was verified."""
    with sqlite3.connect(filled.root / "cache.db") as database:
        database.execute("""UPDATE Cache SET value = json_remove(value, '$.modified')""")
    async with Store(filled, threads) as store:
        assert await store.read(CONTENTS[0]) == CONTENTS[0]
    with sqlite3.connect(filled.root / "cache.db") as database:
        (known,) = database.execute(
            "SELECT count(*) FROM Cache WHERE value LIKE '%modified%'"
        ).fetchone()
    assert known == 1


async def test_verifying_hashes_everything_and_drops_what_is_damaged(filled, threads):
    async with Store(filled, threads) as store:
        file = store.file_of(CONTENTS[1])
        rot(file)
        verdicts = [await store.objects.verify(row.key) async for row in store.objects.rows()]
        assert sorted(verdicts) == [False, True, True, True]
        assert await store.read(CONTENTS[1]) is None
        missing = ObjectKey(BLOBS, Digest.of(b"never stored"))
        assert await store.objects.verify(missing) is None


def rot(file) -> None:
    """Flip a bit as failing media would: nothing but the bytes tells."""
    times = file.stat().st_atime_ns, file.stat().st_mtime_ns
    with file.open("r+b") as opened:
        first = opened.read(1)[0]
        opened.seek(0)
        opened.write(bytes([first ^ 1]))
    os.utime(file, ns=times)


async def test_a_scrub_goes_round_in_its_time_and_goes_on_after_a_restart(filled, threads, caplog):
    caplog.set_level(logging.INFO)
    async with Store(filled, threads) as store:
        rot(store.file_of(CONTENTS[1]))
        slept = []

        async def sleep(seconds: float) -> None:
            slept.append(seconds)
            if len(slept) == 2:
                raise asyncio.CancelledError  # the mirror stops

        with pytest.raises(asyncio.CancelledError):
            await Scrub(store.objects, filled.scrub, 100.0, sleep, lambda: 0.0).run()
        assert filled.scrub.read_text() == "2\n"
        assert await store.read(CONTENTS[1]) is None
        assert await store.read(CONTENTS[0]) == CONTENTS[0]
        sizes = [in_blocks(len(each), 4096) for each in [*CONTENTS, BODY]]
        assert slept[0] == pytest.approx(100 * sizes[0] / sum(sizes))
        slept = [0.0, 0.0]

        async def no_sleep(seconds: float) -> None:
            slept.append(seconds)
            if len(slept) == 5:
                raise asyncio.CancelledError

        with pytest.raises(asyncio.CancelledError):
            await Scrub(store.objects, filled.scrub, 100.0, no_sleep, lambda: 0.0).run()
        assert caplog.messages[-1] == "scrub: 2 objects are sound, 0 were damaged and dropped"
        assert filled.scrub.read_text() == "0\n"


async def test_a_directory_removed_while_running_is_made_again(filled, threads):
    async with Store(filled, threads) as store:
        shutil.rmtree(filled.root)
        assert await store.read(CONTENTS[0]) is None
        with pytest.raises(OSError):  # noqa: PT011  # whatever the disk says first
            await store.keep(CONTENTS[0])
        await store.objects.heal()
        await store.keep(CONTENTS[0])
        assert await store.read(CONTENTS[0]) == CONTENTS[0]
        assert store.objects.health.reason == ""


async def test_an_index_damaged_while_running_is_made_again(filled, threads):
    async with Store(filled, threads) as store:
        with (filled.root / "cache.db").open("r+b") as database:
            database.write(b"\xff" * 200_000)
        for wal in filled.root.glob("cache.db-wal"):
            os.truncate(wal, 0)
        for content in CONTENTS:
            await store.read(content)
        await store.objects.heal()
        await store.found_again()
        assert [await store.read(content) for content in CONTENTS] == CONTENTS


async def test_a_disk_in_trouble_does_not_keep_the_store_from_opening(
    layout, threads, monkeypatch, caplog
):
    def refused(*_):
        raise OSError(errno.EROFS, "Read-only file system")

    with monkeypatch.context() as patch:
        patch.setattr(Layout, "ensure", refused)
        async with Store(layout, threads) as store:
            assert await store.read(CONTENTS[0]) is None
            with pytest.raises(IndexUnavailableError):
                await store.objects.usage()
            await store.objects.heal()
            patch.undo()
            await store.objects.heal()
            await store.keep(CONTENTS[0])
            assert await store.read(CONTENTS[0]) == CONTENTS[0]
    told = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(told) == 2
    assert "mount it for writing" in told[0]
    assert "works again" in told[1]


async def test_a_mistaken_directory_does(layout, threads, monkeypatch):
    def refused(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Layout, "ensure", refused)
    with pytest.raises(PermissionError):
        await Objects(layout, Limits(1, 0), Evictions(), threads).open()


async def test_room_is_made_on_a_disk_too_full_for_the_index(filled, threads, monkeypatch):
    """The file goes first; a row without its file is a miss."""
    async with Store(filled, threads) as store:
        index = store.objects._recoverable.index
        link, failed = os.link, list[str]()

        def full(source, target):
            if not failed:
                failed.append(target)
                raise OSError(errno.ENOSPC, "No space left on device")
            link(source, target)

        monkeypatch.setattr("os.link", full)
        await store.objects.flush_touches()
        most = 10_000_000 - store.objects._recoverable.evictor._reserved_overhead()
        await store.objects.make_room(most // 4096 * 4096 - 4096)
        assert failed
        assert index.count() < 2
        assert len(list((filled.root / BLOBS).rglob("*.*"))) < 2


@pytest.mark.parametrize("harm", ["remove", "damage"])
async def test_a_lost_index_of_tags_is_made_again_without_them(layout, harm):
    link = Link(Descriptor(OCI_MANIFEST, MANIFEST.digest, 7), 123.5)
    notes = KeyValueStore(layout.tags)
    await notes.heal()
    tags = Tags(notes)
    await tags.put("hub app:1", link)
    if harm == "remove":
        shutil.rmtree(layout.tags)
        layout.tags.mkdir()
    else:
        (layout.tags / "cache.db").write_bytes(b"this is no database" * 1000)
        for wal in layout.tags.glob("cache.db-wal"):
            os.truncate(wal, 0)
        with contextlib.suppress(IndexUnavailableError):
            await tags.put("hub app:1", link)
    await notes.heal()
    await tags.put("hub app:2", link)
    assert await tags.lookup("hub app:2") == link
    await notes.close()


def test_the_log_says_once_what_is_wrong_and_once_that_it_is_over(caplog):
    alarm = DiskHealth(Path("/var/cache/mirror"))
    for _ in range(3):
        alarm.failing(OSError(errno.ENOSPC, "No space left on device"))
    alarm.working()
    alarm.working()
    first, second = caplog.messages
    assert first.startswith("cache directory /var/cache/mirror: No space left on device; pulls go")
    assert "max_size" in first
    assert second == "cache directory /var/cache/mirror: works again"


def test_a_trouble_with_several_names_is_logged_once_for_each(caplog):
    """A full disk is one thing for a file, another one for the database."""
    health = DiskHealth(Path("/var/cache/mirror"))
    for _ in range(100):
        health.failing(OSError(errno.ENOSPC, "No space left on device"))
        health.failing(IndexUnavailableError("database or disk is full"))
    assert health.reason == "database or disk is full"
    problem = health.problem
    assert problem is not None
    assert problem.title == "Nothing is kept: database or disk is full"
    assert len(caplog.messages) == 2
    assert all("free some space, or lower max_size" in message for message in caplog.messages)
    health.working()
    assert (health.reason, health.problem) == ("", None)
    assert caplog.messages[2:] == ["cache directory /var/cache/mirror: works again"]


async def test_manifests_without_a_directory_pass(layout, threads):
    async with Store(layout, threads) as store:
        shutil.rmtree(layout.partial)
        with pytest.raises(OSError):  # noqa: PT011  # whatever the disk says first
            await store.manifests.put(Manifest(MANIFEST.digest, OCI_MANIFEST, BODY))
        assert store.objects.health.reason
        await store.objects.heal()
        await store.manifests.put(MANIFEST)
        assert store.objects.health.reason == ""


def test_the_remedy_is_the_same_whether_the_disk_or_the_index_says_it():
    health = DiskHealth(Path("/var/cache/mirror"))
    remedies = set()
    for error in (
        OSError(errno.EROFS, os.strerror(errno.EROFS)),
        IndexUnavailableError(os.strerror(errno.EROFS)),
    ):
        health.failing(error)
        assert health.problem is not None
        remedies.add(health.problem.remedy)
    assert remedies == {"the file system is read-only: mount it for writing"}
