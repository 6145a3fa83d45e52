"""Eviction in the object store: what goes first, and what several mirrors do at once."""

import time

import pytest

from mirror.cluster.eviction import Sweeper
from mirror.cluster.objects import opened_bucket
from mirror.cluster.uploads import path_of
from mirror.oci.digest import Digest
from mirror.store.local.layout import BLOBS, MANIFESTS, ObjectKey
from tests.cluster.conftest import of_fake, unused
from tests.waiting import limit

HOUR, DAY = 3_600.0, 86_400.0
SIZE = 1_000


@pytest.fixture
async def bucket(fake, events):
    bucket = opened_bucket(of_fake(fake), events)
    yield bucket
    await bucket.close()


def key(number: int, kind: str = BLOBS) -> ObjectKey:
    return ObjectKey(kind, Digest.of(b"%d" % number))


def put(fake, number: int, age: float, kind: str = BLOBS) -> str:
    """Put an object that was written ``age`` seconds ago; return its path."""
    path = f"cache/{path_of(key(number, kind))}"
    fake.objects[path] = b" " * SIZE
    fake.written[path] = time.time() - age
    return path


def sweeper(bucket, events, most: int, *used: ObjectKey) -> Sweeper:
    """The sweeper of a mirror that has used these objects today."""
    after: list[float] = []

    async def uses(time_of_day: float) -> tuple[ObjectKey, ...]:
        after.append(time_of_day)
        return used

    return Sweeper(bucket, most, uses, events)


async def test_the_objects_that_were_written_first_go_first(bucket, fake, events):
    paths = [put(fake, number, age=number * DAY) for number in range(1, 11)]
    manifest = put(fake, 11, 20 * DAY, MANIFESTS)
    link = "cache/links/docker.io/library/app:1"
    fake.objects[link] = b" " * SIZE
    fake.written[link] = time.time() - 10.5 * DAY
    await sweeper(bucket, events, 10 * SIZE).sweep()
    # 12 of 10: the manifest, the link and the oldest blob go, since 5 % are left free.
    assert [path for path in paths if path not in fake.objects] == [paths[-1]]
    assert manifest not in fake.objects
    assert link not in fake.objects
    assert events.held == 12 * SIZE
    assert events.evicted == {"objects": 3, "bytes": 3 * SIZE}


async def test_what_fits_stays(bucket, fake, events):
    paths = {put(fake, number, age=900 * DAY) for number in range(10)}
    await sweeper(bucket, events, 10 * SIZE).sweep()
    assert paths <= set(fake.objects)
    assert not events.evicted


async def test_what_any_mirror_has_used_stays(bucket, fake, events):
    paths = [put(fake, number, age=number * DAY) for number in range(1, 11)]
    await sweeper(bucket, events, 100 * SIZE, key(10)).sweep()  # another mirror
    del fake.objects["cache/swept"]
    await sweeper(bucket, events, 9 * SIZE, key(9)).sweep()
    gone = [path for path in paths if path not in fake.objects]
    assert gone == [paths[6], paths[7]]
    marks = {path for path in fake.objects if path.startswith("cache/used/")}
    assert marks == {f"cache/used/{path_of(key(number))}" for number in (9, 10)}


async def test_a_use_is_marked_once_a_day(bucket, fake, events):
    own = sweeper(bucket, events, SIZE, key(1))
    mark = f"cache/used/{path_of(key(1))}"
    await own.sweep()
    written = fake.written[mark]
    await own.sweep()
    assert fake.written[mark] == written
    fake.written[mark] -= 1.5 * DAY
    await own.sweep()
    assert fake.written[mark] > written


async def test_old_marks_are_removed(bucket, fake, events):
    mark = f"cache/used/{path_of(key(1))}"
    fake.objects[mark] = b""
    fake.written[mark] = time.time() - 31 * DAY
    await sweeper(bucket, events, SIZE).sweep()
    assert mark not in fake.objects


async def test_an_evicted_object_takes_its_mark_with_it(bucket, fake, events):
    path = put(fake, 1, age=20 * DAY)
    mark = f"cache/used/{path_of(key(1))}"
    fake.objects[mark] = b""
    fake.written[mark] = time.time() - 10 * DAY
    await sweeper(bucket, events, SIZE // 2).sweep()
    assert path not in fake.objects
    assert mark not in fake.objects


async def test_one_mirror_sweeps_at_a_time(bucket, fake, events):
    await sweeper(bucket, events, SIZE).sweep()
    path, other = put(fake, 1, DAY), put(fake, 2, DAY)
    await sweeper(bucket, events, SIZE).sweep()
    assert {path, other} <= set(fake.objects)
    fake.written["cache/swept"] -= HOUR
    await sweeper(bucket, events, SIZE).sweep()
    assert not {path, other} <= set(fake.objects)


async def test_a_sweep_in_the_future_is_not_believed(bucket, fake, events):
    path = put(fake, 1, DAY)
    mark = f"cache/used/{path_of(key(2))}"
    for each in ("cache/swept", mark):
        fake.objects[each] = b""
        fake.written[each] = time.time() + 900 * DAY
    await sweeper(bucket, events, SIZE // 2).sweep()
    assert path not in fake.objects
    assert mark not in fake.objects


@pytest.mark.parametrize("odd", ["blobs/../secret", "links//app:1", "manifests/\x1b[31m"])
async def test_an_object_whose_name_ends_all_listings_is_named(bucket, fake, events, caplog, odd):
    """Downloads go on; who looks sees why the object store grows."""
    fake.objects[f"cache/{odd}"] = b""
    path = put(fake, 1, DAY)
    own, naps = sweeper(bucket, events, SIZE // 2), 0

    async def sleep(seconds: float) -> None:
        nonlocal naps
        naps += 1
        fake.objects.pop("cache/swept", None)
        if naps == 3:
            assert own.trouble.problem is not None
            assert "is not kept within max_size" in own.trouble.problem.title
            del fake.objects[f"cache/{odd}"]
        if naps == 4:
            raise EOFError

    own._sleep = sleep
    with pytest.raises(EOFError):
        await own.run()
    (warning,) = (text for text in caplog.messages if "invalid path" in text)
    assert warning.isprintable()
    assert events.up == [True]
    assert own.trouble.problem is None
    assert path not in fake.objects


async def test_a_store_that_fails_is_swept_later(bucket, fake, events):
    paths = {put(fake, number, DAY) for number in (1, 2)}
    fake.status = 500
    naps: list[float] = []

    async def sleep(seconds: float) -> None:
        naps.append(seconds)
        if len(naps) == 2:
            assert paths <= set(fake.objects)
            fake.status = 0
            async with limit():
                await bucket.availability.wait()
        if len(naps) == 3:
            raise EOFError

    with pytest.raises(EOFError):
        await Sweeper(bucket, SIZE, unused, events, sleep=sleep).run()
    assert all(HOUR / 2 <= nap <= HOUR for nap in naps)
    assert not paths <= set(fake.objects)
