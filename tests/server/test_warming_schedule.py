"""When images are pulled ahead of time."""

import time
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirror.config.warm import WarmConfig
from mirror.server.warming import until_first, until_next

CHANCE = st.floats(0, 1)
EVERY = st.integers(1, 30 * 86400)
NOON = datetime(2026, 3, 14, 12, 0, 0).astimezone()


def every(seconds: int) -> WarmConfig:
    return WarmConfig.model_validate({"images": ["a"], "every": f"{seconds}s"})


def at(when: str) -> WarmConfig:
    return WarmConfig.model_validate({"images": ["a"], "at": when})


@given(EVERY, CHANCE)
def test_the_first_run_is_soon_after_the_start_but_not_everybodys_at_once(seconds, chance):
    entry = every(seconds)
    assert 0 <= until_first(entry, NOON, chance) <= min(120, seconds * 0.05)
    assert until_first(entry, NOON, 1.0) > until_first(entry, NOON, 0.0)


@given(EVERY, CHANCE)
def test_the_next_run_is_when_it_should_be(seconds, chance):
    assert seconds * 0.95 <= until_next(every(seconds), NOON, 0, chance) <= seconds


@given(EVERY, st.integers(1, 5000), CHANCE)
def test_after_a_failure_it_is_tried_again_sooner_and_less_and_less_often(
    seconds, failures, chance
):
    entry = every(seconds)
    soon = until_next(entry, NOON, failures, chance)
    assert 0 < soon <= until_next(entry, NOON, 0, chance)
    assert soon <= until_next(entry, NOON, failures + 1, chance)
    assert soon >= min(60, seconds * 0.95)


@given(st.integers(0, 23), st.integers(0, 59), st.integers(0, 2 * 365 * 86400), CHANCE)
def test_at_a_time_of_day_the_clock_on_the_wall_shows_it(hour, minute, later, chance):
    now = (NOON + timedelta(seconds=later)).astimezone()
    entry = at(f"{hour}:{minute:02}")
    for seconds in (until_first(entry, now, 0.0), until_next(entry, now, 0, 0.0)):
        assert 0 < seconds <= 25 * 3600
        due = datetime.fromtimestamp(now.timestamp() + seconds).astimezone()
        assert (due.hour, due.minute, due.second) == (hour, minute, 0)
    assert until_first(entry, now, chance) <= until_first(entry, now, 0.0) + 120


@pytest.mark.parametrize(
    ("when", "hours"), [("12:00", 24), ("12:01", 1 / 60), ("11:59", 24 - 1 / 60), ("3:00", 15)]
)
def test_a_time_that_has_passed_is_tomorrows(when, hours):
    assert until_first(at(when), NOON, 0.0) == pytest.approx(hours * 3600)


def test_the_night_in_which_clocks_are_changed_is_an_hour_shorter(monkeypatch):
    monkeypatch.setenv("TZ", "Europe/Berlin")
    time.tzset()
    try:
        evening = datetime(2026, 3, 28, 12, 0, tzinfo=ZoneInfo("Europe/Berlin"))
        assert until_first(at("12:00"), evening, 0.0) == 23 * 3600
    finally:
        monkeypatch.undo()
        time.tzset()
