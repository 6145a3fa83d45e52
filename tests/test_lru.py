"""A mapping within its bounds."""

from mirror.lru import Lru


def test_beyond_the_number_of_entries_the_least_recently_used_goes():
    lru = Lru[str, int](3)
    for value, key in enumerate("abc"):
        assert lru.put(key, value) == []
    assert lru.get("a") == 0
    assert lru.put("d", 3) == ["b"]
    assert ([*lru], lru.get("b")) == (["c", "a", "d"], None)


def test_replacing_an_entry_is_a_use_and_takes_no_more_space():
    lru = Lru[str, int](2, 10)
    lru.put("a", 1, 9)
    lru.put("b", 2, 1)
    assert lru.put("a", 3, 9) == []
    assert lru.put("c", 4, 1) == ["b"]
    assert lru.get("a") == 3


def test_beyond_the_weight_as_many_go_as_needed():
    lru = Lru[str, int](100, 10)
    for key in "abc":
        lru.put(key, 1, 3)
    assert lru.put("d", 1, 7) == ["a", "b"]


def test_an_entry_heavier_than_the_bound_is_not_held_and_takes_no_space():
    lru = Lru[str, int](100, 10)
    assert lru.put("a", 1, 11) == ["a"]
    assert lru.put("b", 1, 10) == []
    assert (lru.get("a"), lru.get("b")) == (None, 1)


def test_a_removed_entry_takes_no_space():
    lru = Lru[str, int](100, 10)
    lru.put("a", 1, 10)
    assert (lru.pop("a"), lru.pop("a")) == (1, None)
    assert lru.put("b", 1, 10) == []
