"""Who goes when there is no room."""

import os
from types import SimpleNamespace

import pytest

from mirror.oci.digest import Digest
from mirror.store.index import ObjectIndex
from mirror.store.layout import BLOBS, ObjectKey
from mirror.store.partial import Partial
from mirror.store.space import Limits, Space


class Evictions(list[int]):
    def evicted(self, size: int) -> None:
        self.append(size)


@pytest.fixture
def index(layout):
    return ObjectIndex(layout)


@pytest.fixture
def evictions():
    return Evictions()


def space(layout, index, evictions, max_bytes: int, min_free: int = 0) -> Space:
    return Space(layout, index, Limits(max_bytes, min_free), evictions, {}, lambda _: None)


def adopt(layout, index, name: str, size: int, used: float) -> ObjectKey:
    data = name.encode() * size
    key = ObjectKey(BLOBS, Digest.of(data[:size]))
    path = layout.partial_of(key)
    path.write_bytes(data[:size])
    index.adopt(key, path, size)
    index.touch({key: used})
    return key


def idle_partial(layout, name: bytes, size: int, modified: float):
    path = layout.partial_of(ObjectKey(BLOBS, Digest.of(name)))
    path.write_bytes(b"x" * size)
    os.utime(path, (modified, modified))
    return path


def test_only_as_many_go_as_must_the_least_recently_used_first(layout, index, evictions):
    keys = [adopt(layout, index, name, 100, when) for when, name in enumerate("abcd", 1)]
    assert space(layout, index, evictions, 400).make_room(150)
    assert [index.lookup(key) is not None for key in keys] == [False, False, True, True]
    assert evictions == [100, 100]


def test_many_go_a_few_at_a_time(layout, index, evictions):
    for at in range(100):
        adopt(layout, index, f"{at:010}", 10, at)
    room = space(layout, index, evictions, 1000)
    steps = [room.make_room(900)]
    while steps[-1] is None:
        steps.append(room.make_room(900))
    assert steps == [None, None, True]
    assert evictions == [10] * 90


def test_nothing_goes_for_what_can_never_fit(layout, index, evictions):
    adopt(layout, index, "a", 100, 1)
    assert not space(layout, index, evictions, 400).make_room(401)
    assert evictions == []


def test_a_reservation_counts_until_it_is_released(layout, index, evictions):
    room = space(layout, index, evictions, 400)
    first, second = (layout.partial_of(ObjectKey(BLOBS, Digest.of(name))) for name in (b"1", b"2"))
    assert room.reserve(first, 300, 300)
    assert room.used_bytes() == 300
    assert not room.reserve(second, 200, 200)
    assert room.used_bytes() == 300
    room.release(first)
    assert room.reserve(second, 200, 200)


def test_bytes_of_a_growing_file_are_not_counted_twice(layout, index, evictions):
    room = space(layout, index, evictions, 400)
    path = idle_partial(layout, b"growing", 100, 1)
    assert room.reserve(path, 300, 300)
    assert room.used_bytes() == 300


def test_an_idle_partial_file_goes_before_what_was_used_since(layout, index, evictions):
    old = idle_partial(layout, b"old", 100, 1)
    kept = adopt(layout, index, "a", 100, 2)
    young = idle_partial(layout, b"young", 100, 3)
    assert space(layout, index, evictions, 300).make_room(100)
    assert (old.exists(), young.exists()) == (False, True)
    assert index.lookup(kept) is not None


def test_a_partial_file_that_somebody_leads_stays(layout, index, evictions):
    digest = Digest.of(b"led elsewhere")
    partial = Partial(layout.partial_of(ObjectKey(BLOBS, digest)), digest)
    partial.append([b"x" * 100])
    os.utime(partial.path, (1, 1))
    assert not Partial.remove_idle(partial.path)
    gone = adopt(layout, index, "a", 100, 2)
    assert space(layout, index, evictions, 200).make_room(50)
    assert partial.path.exists()
    assert index.lookup(gone) is None
    partial.close()
    assert Partial.remove_idle(partial.path)


def test_min_free_evicts_as_max_size_does(layout, index, evictions, monkeypatch):
    adopt(layout, index, "a", 100, 1)
    monkeypatch.setattr(
        "shutil.disk_usage", lambda _: SimpleNamespace(free=150 if evictions else 50)
    )
    assert space(layout, index, evictions, 10_000, min_free=100).make_room(0)
    assert evictions == [100]
