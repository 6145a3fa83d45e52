"""Mirrors that sent wrong bytes are asked last, for a while."""

import pytest

from mirror.upstream.endpoints import Doubts

FIRST, SECOND = 0, 1


@pytest.fixture
def clock():
    return [1000.0]


@pytest.fixture
def doubts(clock):
    return Doubts(lambda: clock[0])


def test_a_failure_puts_a_mirror_behind_for_one_thing_and_a_while(doubts, clock):
    doubts.failed(FIRST, "thing")
    assert doubts.is_behind(FIRST, "thing")
    assert not doubts.is_behind(FIRST, "other thing")
    assert not doubts.is_behind(SECOND, "thing")
    clock[0] += 301
    assert not doubts.is_behind(FIRST, "thing")


def test_three_failures_put_it_behind_for_everything_and_a_while(doubts, clock):
    for number in range(3):
        assert not doubts.is_behind(FIRST, "other thing")
        doubts.failed(FIRST, f"thing {number}")
        clock[0] += 1
    assert doubts.is_behind(FIRST, "other thing")
    assert not doubts.is_behind(SECOND, "other thing")
    clock[0] += 300
    assert not doubts.is_behind(FIRST, "other thing")


def test_only_mirrors_that_gave_something_are_blamed_and_once(doubts):
    assert doubts.blame("thing") == []
    doubts.gave(FIRST, "thing")
    assert doubts.blame("thing") == [FIRST]
    assert doubts.is_behind(FIRST, "thing")
    assert not doubts.is_behind(SECOND, "thing")
    doubts.gave(FIRST, "thing")
    assert doubts.blame("thing") == [], "asking once more would end nowhere"
