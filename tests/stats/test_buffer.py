"""What is collected for the ledger stays small, whatever clients make up."""

from dataclasses import replace

from mirror.stats.buffer import Request, StatsBuffer

REQUEST = Request("docker.io", "library/app", "1", "manifest", "hit", "Docker", 0)


def test_a_client_that_asks_for_many_tags_is_remembered_for_some_of_them():
    buffer = StatsBuffer("2026-03-14", 7)
    for number in range(10_000):
        buffer.add(replace(REQUEST, reference=f"tag-{number}"), "10.0.0.7", 0.0, 1.0)
    (session,) = buffer.sessions.values()
    assert len(session.asked) == 64
    assert buffer.figures["2026-03-14", 7, "docker.io", "hit"] == 10_000
    later = StatsBuffer("2026-03-14", 7)
    later.add(replace(REQUEST, reference="another"), "10.0.0.7", 2.0, 3.0)
    buffer.absorb(later)
    assert len(session.asked) == 64
    assert session.last == 3.0


def test_repetitions_for_many_clients_are_counted_and_not_kept():
    buffer = StatsBuffer("2026-03-14", 7)
    for number in range(25_000):
        buffer.repeat(REQUEST, f"10.0.{number >> 8}.{number & 255}", 1.0)
        assert len(buffer._repeats) <= 10_000
    buffer.settle()
    assert buffer.figures["2026-03-14", 7, "docker.io", "hit"] == 25_000
    assert len(buffer.sessions) == 2000
