"""How long what upstream said may be served when it cannot be asked."""

import pytest

from mirror.pull.policy import usable_stale

DAY = 86_400.0


@pytest.mark.parametrize(
    ("days", "usable"), [(0, True), (30, True), (31, False), (-1, True), (-30, True), (-31, False)]
)
def test_what_was_seen_holds_for_its_time_by_a_clock_that_was_set_either_way(days, usable):
    assert usable_stale(1e9, 1e9 + days * DAY, 30 * DAY) is usable
