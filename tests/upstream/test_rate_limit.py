"""Silence after a 429, for as long as upstream asked."""

from email.utils import formatdate

import pytest

from mirror.upstream.errors import RateLimitedError
from mirror.upstream.rate_limit import RateLimitPause


@pytest.mark.parametrize(
    ("retry_after", "seconds"),
    [
        ("17", 17),
        ("0", 0),
        ("", 30),
        ("soon", 30),
        ("-5", 30),
        ("9" * 5000, 30),
        ("999999", 3600),
        (100.0, 100),
        (-100.0, 0),
    ],
)
def test_it_is_shut_for_as_long_as_upstream_asked_within_reason(retry_after, seconds):
    theirs, date = 4e9, ""  # their clock is far ahead of ours
    if isinstance(retry_after, float):
        date = formatdate(theirs, usegmt=True)
        retry_after = formatdate(theirs + retry_after, usegmt=True)
    now = [1000.0]
    gate = RateLimitPause("docker.io", clock=lambda: now[0])
    gate.check()
    assert gate.close(retry_after, date).retry_after == pytest.approx(seconds, abs=5)
    if seconds:
        now[0] += seconds - 6
        with pytest.raises(RateLimitedError):
            gate.check()
    now[0] += 12
    gate.check()
