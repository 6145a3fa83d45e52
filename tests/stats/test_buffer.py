"""What is collected for the ledger stays small, whatever clients make up."""

from dataclasses import replace

from mirror.stats.buffer import Request, StatsBuffer

REQUEST = Request("docker.io", "library/app", "1", "manifest", "hit", "Docker", 0)


def test_a_client_that_asks_for_many_tags_is_remembered_for_some_of_them():
    batch = StatsBuffer("2026-03-14")
    for number in range(10_000):
        batch.add(replace(REQUEST, reference=f"tag-{number}"), "10.0.0.7", 0.0, 1.0)
    (visit,) = batch.visits.values()
    assert len(visit.asked) == 64
    assert batch.figures["2026-03-14", "docker.io", "hit"] == 10_000
    later = StatsBuffer("2026-03-14")
    later.add(replace(REQUEST, reference="another"), "10.0.0.7", 2.0, 3.0)
    batch.absorb(later)
    assert len(visit.asked) == 64
    assert visit.last == 3.0


def test_repetitions_for_many_clients_are_counted_and_not_kept():
    batch = StatsBuffer("2026-03-14")
    for number in range(25_000):
        batch.repeat(REQUEST, f"10.0.{number >> 8}.{number & 255}", 1.0)
        assert len(batch._repeats) <= 10_000
    batch.settle()
    assert batch.figures["2026-03-14", "docker.io", "hit"] == 25_000
    assert len(batch.visits) == 2000
