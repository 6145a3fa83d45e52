"""Who goes when there is no room."""

import os
from types import SimpleNamespace

import pytest

from mirror.oci.digest import Digest
from mirror.store.local.eviction import Evictor, Limits
from mirror.store.local.index import ObjectIndex
from mirror.store.local.layout import BLOBS, ObjectKey
from mirror.store.local.partial import Partial
from mirror.store.local.sqlite import Bounds

#: In these tests sizes are told in this: so large that the databases make no difference.
K = 10 * 1024
SMALL = Bounds.of(0)


class Evictions(list[int]):
    def evicted(self, size: int) -> None:
        self.append(size)


@pytest.fixture
def index(layout):
    return ObjectIndex(layout, bounds=SMALL)


@pytest.fixture
def evictions():
    return Evictions()


def limits(layout, index, wanted: int, min_free: int = 0) -> Limits:
    """Limits that leave room for so many bytes of objects beside the databases."""
    most = wanted
    for _ in range(20):  # what is reserved is a share of it
        room = Evictor(layout, index, Limits(most, 0), Evictions(), {}, lambda _: None)
        most = wanted + room._reserved_overhead() + 20 * K
    return Limits(most, min_free)


def space(layout, index, evictions, wanted: int, min_free: int = 0) -> Evictor:
    told = limits(layout, index, wanted, min_free)
    return Evictor(layout, index, told, evictions, {}, lambda _: None)


def adopt(layout, index, name: str, size: int, used: float) -> ObjectKey:
    key = key_of(name, size)
    path = layout.partial_of(key)
    sparse(path, size)
    index.adopt(key, path, size)
    index.touch({key: used})
    return key


def key_of(name: str, size: int) -> ObjectKey:
    return ObjectKey(BLOBS, Digest.of(f"{name} {size}".encode()))


def sparse(path, size: int) -> None:
    with path.open("wb") as file:
        file.truncate(size)


def idle_partial(layout, name: bytes, size: int, modified: float):
    path = layout.partial_of(ObjectKey(BLOBS, Digest.of(name)))
    sparse(path, size)
    os.utime(path, (modified, modified))
    return path


def test_only_as_many_go_as_must_the_least_recently_used_first(layout, index, evictions):
    keys = [adopt(layout, index, name, 100 * K, when) for when, name in enumerate("abcd", 1)]
    assert space(layout, index, evictions, 400 * K).make_room(150 * K)
    assert [index.lookup(key) is not None for key in keys] == [False, False, True, True]
    assert evictions == [100 * K, 100 * K]


def test_many_go_a_few_at_a_time(layout, index, evictions):
    for at in range(100):
        adopt(layout, index, str(at), 100 * K, at)
    room = space(layout, index, evictions, 10_000 * K)
    steps = [room.make_room(9_000 * K)]
    while steps[-1] is None:
        steps.append(room.make_room(9_000 * K))
    assert steps == [None, None, True]
    assert evictions == [100 * K] * 90


def test_nothing_goes_for_what_can_never_fit(layout, index, evictions):
    adopt(layout, index, "a", 100 * K, 1)
    assert not space(layout, index, evictions, 400 * K).make_room(450 * K)
    assert evictions == []


def test_a_reservation_counts_until_it_is_released(layout, index, evictions):
    room = space(layout, index, evictions, 400 * K)
    first, second = (layout.partial_of(ObjectKey(BLOBS, Digest.of(name))) for name in (b"1", b"2"))
    assert room.reserve(first, 300 * K, 300 * K)
    assert room.used_bytes() == 300 * K
    assert not room.reserve(second, 200 * K, 200 * K)
    assert room.used_bytes() == 300 * K
    room.release(first)
    assert room.reserve(second, 200 * K, 200 * K)


def test_bytes_of_a_growing_file_are_not_counted_twice(layout, index, evictions):
    room = space(layout, index, evictions, 400 * K)
    path = idle_partial(layout, b"growing", 100 * K, 1)
    assert room.reserve(path, 300 * K, 300 * K)
    assert room.used_bytes() == 300 * K


def test_an_idle_partial_file_goes_before_what_was_used_since(layout, index, evictions):
    old = idle_partial(layout, b"old", 100 * K, 1)
    kept = adopt(layout, index, "a", 100 * K, 2)
    young = idle_partial(layout, b"young", 100 * K, 3)
    assert space(layout, index, evictions, 300 * K).make_room(100 * K)
    assert (old.exists(), young.exists()) == (False, True)
    assert index.lookup(kept) is not None


def test_a_partial_file_that_somebody_leads_stays(layout, index, evictions):
    digest = Digest.of(b"led elsewhere")
    partial = Partial(layout.partial_of(ObjectKey(BLOBS, digest)), digest)
    partial.write([bytes(100 * K)])
    os.utime(partial.path, (1, 1))
    assert not Partial.remove_idle(partial.path)
    gone = adopt(layout, index, "a", 100 * K, 2)
    assert space(layout, index, evictions, 200 * K).make_room(50 * K)
    assert partial.path.exists()
    assert index.lookup(gone) is None
    partial.close()
    assert Partial.remove_idle(partial.path)


@pytest.mark.parametrize(
    ("limit", "left", "gone"),
    [
        ({"min_free_bytes": 100 * K}, {"f_bavail": 50 * K}, 1),
        ({"min_free_inodes": 500}, {"f_favail": 514}, 2),
        ({}, {"f_favail": 0}, 16),
        ({}, {"f_favail": 0, "f_files": 0}, 0),
    ],
    ids=["bytes", "inodes", "no inode at all", "a file system without a limit on inodes"],
)
def test_min_free_evicts_as_max_size_does(layout, index, evictions, monkeypatch, limit, left, gone):
    for at in range(20):
        adopt(layout, index, str(at), 100 * K, 1)
    allowed = Limits(**{"max_bytes": 10_000 * K, "min_free_bytes": 0} | limit)
    disk = {"f_frsize": 1, "f_files": 1000, "f_bavail": 1000 * K, "f_favail": 1000}
    monkeypatch.setattr("os.statvfs", lambda _: SimpleNamespace(**disk | left))
    room = Evictor(layout, index, allowed, evictions, {}, lambda _: None)
    assert room.make_room(0) is (None if gone else True)
    assert evictions == [100 * K] * gone
