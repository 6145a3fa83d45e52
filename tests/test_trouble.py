"""Troubles that last: when the log has a line about them."""

from mirror.trouble import Trouble


def test_a_trouble_is_logged_when_it_begins_and_when_it_ends():
    now = [1000.0]
    trouble = Trouble(clock=lambda: now[0])
    assert trouble.over() is None
    assert [trouble.met() for _ in range(100)] == [True] + [False] * 99
    now[0] += 7200
    assert not trouble.met()
    assert trouble.over() == 7200
    assert trouble.over() is None


def test_a_trouble_that_comes_and_goes_is_logged_once_a_minute():
    now = [1000.0]
    trouble = Trouble(clock=lambda: now[0])
    logged = 0
    for _ in range(600):
        logged += trouble.met()
        trouble.over()
        now[0] += 1
    assert logged == 10


def test_a_trouble_that_comes_back_for_good_is_logged_after_a_minute():
    now = [1000.0]
    trouble = Trouble(clock=lambda: now[0])
    assert trouble.met()
    trouble.over()
    now[0] += 30
    assert not trouble.met()
    now[0] += 30
    assert trouble.met()
    assert trouble.over() == 30
