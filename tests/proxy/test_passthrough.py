"""After a push nothing that was known before counts, whatever the clock says."""

import time

from mirror.proxy.passthrough import Pushes


def test_each_push_is_another_one_although_the_clock_was_set_back(tmp_path, monkeypatch):
    one, other = Pushes(tmp_path / "pushed", 60), Pushes(tmp_path / "pushed", 60)
    one.note("docker.io/team/app")
    before = one.last("docker.io/team/app"), other.last("docker.io/team/app")
    assert before[0] == before[1] != ""
    now = time.time_ns() - 3600 * 1_000_000_000
    monkeypatch.setattr(time, "time_ns", lambda: now)
    other.note("docker.io/team/app")
    after = one.last("docker.io/team/app"), other.last("docker.io/team/app")
    assert after[0] == after[1]
    assert after[0] not in before
