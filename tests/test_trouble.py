"""Troubles that last: when the log has a line about them."""

from mirror.trouble import Problem, Trouble, merged


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


def test_a_trouble_that_lasts_says_since_when_and_until_when():
    now = [1000.0]
    trouble = Trouble(clock=lambda: now[0], wall_clock=lambda: now[0] + 5000)
    trouble.met(Problem("down", "refused", "check the network"))
    now[0] += 60
    trouble.met(Problem("down", "timed out", "check the network", until=7000.0))
    assert trouble.problem == Problem("down", "timed out", "check the network", 7000.0, 6000, 6060)
    trouble.over()
    assert trouble.problem is None


def test_the_same_trouble_of_several_processes_is_one():
    one = Problem("down", "refused", "wait", until=None, since=10, seen=20)
    other = Problem("down", "timed out", "wait", until=90, since=15, seen=30)
    apart = Problem("full", "no room", "raise max_size", since=5, seen=6)
    assert merged([other, one, apart]) == [
        apart,
        Problem("down", "timed out", "wait", until=90, since=10, seen=30),
    ]
