"""What is kept does not go, and costs whoever makes room nothing."""

import sqlite3
import time

import pytest

from mirror.oci.digest import Digest
from mirror.store.local.eviction import Evictor
from mirror.store.local.index import ObjectIndex
from mirror.store.local.layout import BLOBS, ObjectKey
from mirror.store.local.sqlite import DATABASE
from tests.store.local.test_eviction import SMALL, Evictions, K, adopt, key_of, limits


@pytest.fixture
def index(layout):
    index = ObjectIndex(layout, bounds=SMALL)
    yield index
    index.close()


def room(layout, index, max_bytes: int, told: list[int]) -> Evictor:
    return Evictor(layout, index, limits(layout, index, max_bytes), Evictions(), {}, told.append)


def test_what_is_kept_stays_however_long_nobody_used_it(layout, index):
    old, other, young = (
        adopt(layout, index, name, 100 * K, at) for at, name in enumerate("abc", 1)
    )
    index.kept.put([old], now=1)
    assert room(layout, index, 300 * K, []).make_room(150 * K)
    assert [index.lookup(key) is not None for key in (old, other, young)] == [True, False, False]


def test_what_was_kept_before_it_is_there_is_kept_when_it_comes(layout, index):
    index.kept.put([key_of("a", 100 * K)], now=1)
    kept = adopt(layout, index, "a", 100 * K, used=1)
    adopt(layout, index, "b", 100 * K, used=2)
    other_process = ObjectIndex(layout)
    assert room(layout, other_process, 200 * K, []).make_room(100 * K)
    other_process.close()
    assert index.lookup(kept) is not None
    assert index.kept.bytes() == 100 * K


def test_where_kept_objects_fill_the_cache_there_is_no_room_and_it_is_said(layout, index):
    kept = [adopt(layout, index, name, 100 * K, 1) for name in "abc"]
    other = adopt(layout, index, "d", 100 * K, 2)
    index.kept.put(kept, now=1)
    told: list[int] = []
    assert room(layout, index, 400 * K, told).make_room(200 * K) is False
    assert told == [300 * K]
    assert index.lookup(other) is not None, "nothing goes in vain"
    assert room(layout, index, 400 * K, told).make_room(1000 * K) is False
    assert told == [300 * K], "what never fits has nothing to do with what is kept"


def test_what_is_kept_no_more_may_go_again(layout, index):
    first, second = (adopt(layout, index, name, 100 * K, 1) for name in "ab")
    index.kept.put([first], now=1)
    index.kept.put([second], now=5)
    assert index.kept.release(before=3, limit=10) == 1
    assert (index.kept.among([first, second]), index.kept.bytes()) == ({second}, 100 * K)
    assert [key for key, _ in index.oldest(10)] == [first]


def test_the_sum_follows_adoptions_removals_and_replacements(layout, index):
    key = key_of("a", 100 * K)
    index.kept.put([key, key_of("b", 70 * K)], now=1)
    adopt(layout, index, "a", 100 * K, 1)
    adopt(layout, index, "b", 70 * K, 1)
    adopt(layout, index, "a", 100 * K, 1)  # over what was there
    assert index.kept.bytes() == 170 * K
    index.remove(key)
    assert index.kept.bytes() == 70 * K
    index.kept.put([key], now=2)
    assert index.kept.bytes() == 70 * K


@pytest.mark.long
@pytest.mark.slow
def test_a_hundred_thousand_kept_objects_do_not_slow_down_who_makes_room(layout, index):
    """Rows without files, as many as a large cache has, and all older than the one that may go."""
    with sqlite3.connect(layout.root / DATABASE) as database:
        columns = "key, raw, store_time, access_time, access_count, size, mode, filename, value"
        database.executemany(
            f"INSERT INTO Cache ({columns}) VALUES (?, 1, 0, ?, 0, 1, 2, ?, '{{}}')",
            ((f"blobs.sha256.{at:064x}", at, f"blobs/{at}") for at in range(100_000)),
        )
    database.close()
    keys = [ObjectKey(BLOBS, Digest("sha256", f"{at:064x}")) for at in range(100_000)]
    index.kept.put(keys, now=1)
    young = adopt(layout, index, "y", 10, used=200_000)
    assert index.kept.bytes() == 100_000
    started = time.process_time()
    for _ in range(100):
        assert index.oldest(32) == [(young, 200_000)]
        index.kept.bytes()
    assert time.process_time() - started < 0.5, "0.02 s; looking at all of them takes 2 s"


def test_nothing_is_written_into_a_database_in_which_nothing_was_ever_kept(layout, index):
    adopt(layout, index, "a", 100, 1)
    assert (index.kept.bytes(), index.kept.release(9, 9), index.kept.among([])) == (0, 0, set())
    with sqlite3.connect(layout.root / DATABASE) as database:
        names = {name for (name,) in database.execute("SELECT name FROM sqlite_master")}
    database.close()
    assert not {name for name in names if "ept" in name}
