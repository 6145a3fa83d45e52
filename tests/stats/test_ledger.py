"""The ledger: what is a pull, what survives, what goes wrong."""

import os
import resource
import signal
import sqlite3
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from mirror.stats.buffer import Failed, Request
from mirror.stats.db import DATABASE
from mirror.stats.ledger import Ledger
from mirror.stats.queries import daily_pulls_of, history_of, read_report
from mirror.stats.report import Filling, History, StatsReport
from mirror.trouble import Problem

NOON = time.mktime((2026, 3, 14, 12, 0, 0, 0, 0, -1))
INDEX = "sha256:" + "1" * 64
PLATFORM = "sha256:" + "2" * 64


class Clock:
    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def directory(tmp_path) -> Path:
    return tmp_path / "ledger"


class Client:
    """A client that asks one ledger, or in turn the ledgers of several processes."""

    def __init__(self, clock: Clock, *ledgers: Ledger, address="10.0.0.7", agent="Docker") -> None:
        self._clock, self._ledgers = clock, ledgers
        self._address, self._agent = address, agent
        self._turn = 0

    def ask(self, reference: str, *, repository="library/app", seconds=0.1, **fields) -> None:
        self._clock.now += seconds
        ledger = self._ledgers[self._turn % len(self._ledgers)]
        self._turn += 1
        request = Request(
            **{"upstream": "docker.io", "repository": repository, "reference": reference}
            | {"kind": "manifest", "result": "hit", "agent": self._agent, "size": 0}
            | fields
        )
        ledger.buffer.add(request, self._address, self._clock.now - seconds, self._clock.now)

    def pull(self, tag: str, *, result="hit", blobs=(1000, 2000), **fields) -> None:
        """As dockerd with containerd's image store does it."""
        self.ask(tag, head=True, digest=INDEX, result=result, **fields)
        self.ask(INDEX, digest=INDEX, size=50, result=result, **fields)
        total = sum(blobs)
        self.ask(PLATFORM, digest=PLATFORM, size=70, content_bytes=total, result=result, **fields)
        for number, size in enumerate(blobs):
            self.ask(f"sha256:{number:064}", kind="blob", size=size, result=result, **fields)


@pytest.fixture
async def ledger(directory, clock):
    ledger = Ledger(directory, clock)
    yield ledger
    await ledger.close()


async def recent(ledger: Ledger) -> list[tuple[str, str, int]]:
    return [(pull.repository, pull.reference, pull.times) for pull in (await ledger.state()).recent]


# What is a pull.


async def test_a_pull_is_a_line_however_many_requests_it_takes(ledger, clock):
    Client(clock, ledger).pull("3.20", result="miss")
    state = await ledger.state()
    (pull,) = state.recent
    assert (pull.upstream, pull.repository, pull.reference) == ("docker.io", "library/app", "3.20")
    assert (pull.client, pull.result, pull.times) == ("Docker", "miss", 1)
    assert pull.sent_bytes == pull.missed_bytes == 3120
    assert pull.started == pytest.approx(NOON)
    assert pull.seconds == pytest.approx(0.5)
    (image,) = state.most_pulled
    assert (image.reference, image.pulls, image.size) == ("3.20", 1, 3000)
    assert image.digest == PLATFORM
    assert state.largest == state.longest_unused == state.most_pulled


@pytest.mark.parametrize(
    ("asked", "times"),
    [
        ([("1", "HEAD"), ("1", "GET"), (PLATFORM, "GET")], 1),  # dockerd
        ([("1", "GET"), (PLATFORM, "GET")], 1),  # Podman
        ([("1", "HEAD"), (INDEX, "GET"), (PLATFORM, "GET")], 1),  # containerd
        ([(INDEX, "GET"), (PLATFORM, "GET")], 1),  # by digest
        ([("1", "HEAD"), ("1", "HEAD"), ("1", "GET")], 2),  # asked twice, one answer was enough
        ([("1", "GET")] * 3, 3),
    ],
)
async def test_how_often_it_was_pulled_is_how_often_it_was_asked_for_by_name(
    ledger, clock, asked, times
):
    client = Client(clock, ledger)
    for reference, method in asked:
        client.ask(reference, head=method == "HEAD", digest=INDEX)
    assert await recent(ledger) == [("library/app", asked[0][0], times)]
    assert [image.pulls for image in (await ledger.state()).most_pulled] == [times]


async def test_who_only_asks_has_not_pulled_until_the_manifest_is_got(ledger, clock):
    client = Client(clock, ledger)
    client.ask("1", head=True, digest=INDEX)
    assert await recent(ledger) == []
    assert (await ledger.state()).most_pulled == ()
    client.ask(INDEX, digest=INDEX)
    assert await recent(ledger) == [("library/app", "1", 1)]


async def test_after_a_minute_of_silence_it_is_another_pull(ledger, clock):
    client = Client(clock, ledger)
    client.pull("1")
    clock.now += 59
    client.pull("1")
    assert await recent(ledger) == [("library/app", "1", 2)]
    clock.now += 61
    client.pull("1")
    assert await recent(ledger) == [("library/app", "1", 1), ("library/app", "1", 2)]
    assert [image.pulls for image in (await ledger.state()).most_pulled] == [3]


async def test_blobs_that_take_long_belong_to_what_began_them(ledger, clock):
    client = Client(clock, ledger)
    client.ask("1", digest=INDEX)
    client.ask(PLATFORM, kind="blob", size=5000, seconds=600)
    (pull,) = (await ledger.state()).recent
    assert (pull.sent_bytes, round(pull.seconds)) == (5000, 600)


async def test_two_clients_are_two_lines_and_so_are_two_tags(ledger, clock):
    one = Client(clock, ledger)
    other = Client(clock, ledger, address="10.0.0.8")
    tool = Client(clock, ledger, agent="Skopeo")
    for client in (one, other, tool):
        client.pull("1")
    one.pull("2", blobs=())
    assert sorted(await recent(ledger)) == [("library/app", "1", 1)] * 3 + [("library/app", "2", 1)]
    counted = {image.reference: image.pulls for image in (await ledger.state()).most_pulled}
    assert counted == {"1": 3, "2": 1}


async def test_two_tags_at_once_are_told_apart_by_what_they_mean(ledger, clock):
    client = Client(clock, ledger)
    client.ask("1", head=True, digest=INDEX)
    client.ask("2", head=True, digest=PLATFORM)
    client.ask(INDEX, digest=INDEX)
    client.ask(PLATFORM, digest=PLATFORM)
    assert sorted(await recent(ledger)) == [("library/app", "1", 1), ("library/app", "2", 1)]


async def test_what_there_is_not_was_not_pulled(ledger, clock):
    client = Client(clock, ledger)
    client.ask("gone", result="negative")
    client.ask("closed", result="denied", upstream="")
    state = await ledger.state()
    assert state.recent == state.most_pulled == ()
    assert state.total.requests == {"negative": 1}, "no upstream was asked for the other"
    assert state.total.hit_rate is None


async def test_the_worst_that_happened_is_the_result(ledger, clock):
    client = Client(clock, ledger)
    client.ask("1", result="revalidated", digest=INDEX)
    client.ask("sha256:a", kind="blob", size=10)
    client.ask("sha256:b", kind="blob", size=20, result="miss")
    client.ask("sha256:c", kind="blob", size=30, result="coalesced")
    (pull,) = (await ledger.state()).recent
    assert (pull.result, pull.sent_bytes, pull.missed_bytes) == ("miss", 60, 20)


async def test_repetitions_count_like_any_other(ledger, clock):
    request = Request("docker.io", "library/app", "1", "manifest", "hit", "Docker", 50)
    for client in ("10.0.0.7", "10.0.0.8", "10.0.0.7", "10.0.0.7"):
        ledger.buffer.repeat(request, client, clock())
    state = await ledger.state()
    assert sorted(pull.times for pull in state.recent) == [1, 3]
    assert state.total.requests == {"hit": 4}
    assert state.total.served_bytes == 200


# Several processes.


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
async def test_a_pull_spread_over_processes_is_one_whichever_writes_first(directory, clock, order):
    ledgers = [Ledger(directory, clock) for _ in range(3)]
    Client(clock, *ledgers).pull("1", blobs=(1000, 2000, 3000))
    for number in order:
        await ledgers[number].flush()
    assert await recent(ledgers[0]) == [("library/app", "1", 1)]
    state = await ledgers[1].state()
    assert [image.pulls for image in state.most_pulled] == [1]
    assert [pull.sent_bytes for pull in state.recent] == [6120]
    assert state.total.requests == {"hit": 6}
    for ledger in ledgers:
        await ledger.close()


async def test_a_download_is_shown_once_with_the_clients_of_all(directory, clock):
    leader, follower = Ledger(directory, clock), Ledger(directory, clock)
    await leader.flush([Filling(INDEX, "docker.io", "library/app", 500, 1000, 100.0, 1)])
    await follower.flush([Filling(INDEX, "docker.io", "library/app", 400, 1000, 90.0, 2)])
    expected = Filling(INDEX, "docker.io", "library/app", 500, 1000, 100.0, 3)
    assert (await leader.state()).fills == (await follower.state()).fills == (expected,)
    await leader.flush([])
    assert [fill.waiting for fill in (await leader.state()).fills] == [2]
    clock.now += 6  # a process that says nothing any more is gone
    assert (await leader.state()).fills == ()
    await leader.close()
    await follower.close()


async def test_anybody_may_read_while_mirrors_run_and_after(directory, clock):
    ledger = Ledger(directory, clock)
    assert read_report(directory, clock()) == StatsReport()
    Client(clock, ledger).pull("1")
    state = await ledger.state()
    assert read_report(directory, clock()) == state
    await ledger.close()
    assert read_report(directory, clock()) == state


# What survives.


async def test_figures_survive_a_restart_and_today_ends_at_midnight(directory, clock):
    ledger = Ledger(directory, clock)
    client = Client(clock, ledger)
    client.ask("1", size=100, result="miss")
    ledger.buffer.figures["2026-03-14", int(clock() // 3600), "", "denied"] += (
        1  # by an earlier release
    )
    ledger.buffer.got("docker.io", 100)
    ledger.buffer.answers["docker.io"] = "200", clock()
    ledger.buffer.limits["docker.io"] = 100, 96
    await ledger.close()
    clock.now += 24 * 3600
    ledger = Ledger(directory, clock)
    Client(clock, ledger).ask("1", size=100)
    state = await ledger.state()
    assert state.since == pytest.approx(NOON, abs=1)
    assert state.total.requests == {"miss": 1, "hit": 1}
    assert (state.total.served_bytes, state.total.saved_bytes) == (200, 100)
    assert state.total.hit_rate == 0.5
    assert state.today.requests == {"hit": 1}
    assert state.today.saved_bytes == 100
    history = await ledger.read(partial(history_of, hours=24, days=30), History)
    saved = {day: each["docker.io"].saved_bytes for day, each in history.days.items()}
    assert saved == {"2026-03-14": 0, "2026-03-15": 100}
    (hour,) = history.hours
    assert hour == int(clock() // 3600)
    assert [account.name for account in state.upstreams] == ["docker.io"]
    (account,) = state.upstreams
    assert (account.code, account.up, account.allowed, account.remaining) == ("200", True, 100, 96)
    await ledger.close()


KILLED = """
import asyncio, os, signal, sys
from pathlib import Path
from mirror.stats.buffer import Request
from mirror.stats.ledger import Ledger

async def main():
    ledger = Ledger(Path(sys.argv[1]))
    request = Request("docker.io", "library/app", "1", "manifest", "hit", "Docker", 10)
    for number in range(100_000):
        ledger.buffer.add(request, "10.0.0.7", 0.0, 0.0)
        await ledger.flush()
        print(number + 1, flush=True)

asyncio.run(main())
"""


async def test_a_kill_loses_nothing_that_was_written(directory):
    directory.mkdir()
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(directory)], stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        for _ in range(20):
            written = int(child.stdout.readline())
        os.kill(child.pid, signal.SIGKILL)
        for line in child.stdout:
            written = int(line)
    state = read_report(directory, 0.0)
    assert state.trouble == ""
    assert state.total.requests["hit"] in {written, written + 1}
    assert [image.pulls for image in state.most_pulled] == [state.total.requests["hit"]]


async def test_it_stays_bounded(directory, clock, monkeypatch):
    monkeypatch.setattr("mirror.stats.db._PULLS", 5)
    monkeypatch.setattr("mirror.stats.db._IMAGES", 8)
    ledger = Ledger(directory, clock)
    client = Client(clock, ledger)
    for number in range(40):
        client.ask(str(number), digest=INDEX)
        clock.now += 0.5 if number else 100 * 24 * 3600
        await ledger.flush()
    state = await ledger.state(recent=100, images=100)
    assert [pull.reference for pull in state.recent] == ["39", "38", "37", "36", "35"]
    assert len(state.most_pulled) == 8
    history = await ledger.read(partial(history_of, hours=24, days=1000), History)
    assert len(history.days) == 1
    assert state.total.requests == {"hit": 40}
    await ledger.close()


async def test_failed_pulls_are_counted_by_reason_and_bounded(directory, clock, monkeypatch):
    monkeypatch.setattr("mirror.stats.db._FAILURES", 5)
    ledger = Ledger(directory, clock)
    for number in (*range(9), 8):
        clock.now += 1
        failed = Failed("docker.io", "library/app", str(number), "Docker", "error", "refused")
        ledger.buffer.failed(failed, clock())
        ledger.buffer.failed(failed, clock())
        await ledger.flush()
    found = (await ledger.state()).failures
    assert [(each.reference, each.times) for each in found] == [
        ("8", 4),
        *((str(number), 2) for number in (7, 6, 5, 4)),
    ]
    assert (found[0].first, found[0].last) == (clock() - 1, clock())
    clock.now += 8 * 24 * 3600
    Client(clock, ledger).ask("1")
    assert (await ledger.state()).failures == ()
    await ledger.close()


async def test_pulls_are_counted_by_day_and_image(directory, clock):
    ledger = Ledger(directory, clock)
    client = Client(clock, ledger)
    for tag in ("1", "2", "1"):
        client.ask(tag, digest=INDEX)
        clock.now += 100
        await ledger.flush()
    clock.now += 24 * 3600
    client.ask("1", digest=INDEX)
    await ledger.flush()

    async def days(reference: str) -> dict[str, int]:
        place = ("docker.io", "library/app")
        query = partial(daily_pulls_of, days=30, place=place, reference=reference)
        return await ledger.read(query, dict)

    assert await days("1") == {"2026-03-14": 2, "2026-03-15": 1}
    assert await days("") == {"2026-03-14": 3, "2026-03-15": 1}
    clock.now += 40 * 24 * 3600
    client.ask("2", digest=INDEX)
    await ledger.flush()
    assert await days("1") == {}
    await ledger.close()


async def test_the_troubles_of_all_processes_are_seen_until_they_end(directory, clock):
    first, second = Ledger(directory, clock), Ledger(directory, clock)
    down = Problem("quay.io does not answer", "refused", "wait", None, clock(), clock())
    full = Problem("no room", "full", "raise max_size", NOON + 60, clock(), clock())
    await first.flush(problems=[down])
    await second.flush(problems=[down, full])
    for ledger in (first, second):
        assert set((await ledger.state()).problems) == {down, full}
    await second.flush()
    assert (await first.state()).problems == (down,)
    clock.now += 10  # the first process has ended, and renews nothing
    assert (await second.state()).problems == ()
    await first.close()
    await second.close()


async def test_a_ledger_of_an_earlier_release_is_used_and_can_be_used_by_it_again(directory, clock):
    ledger = Ledger(directory, clock)
    Client(clock, ledger).ask("1", size=100)
    await ledger.close()
    tables = ("hours", "image_days", "failures", "problems")
    with sqlite3.connect(directory / DATABASE) as database:
        for table in tables:
            database.execute(f"DROP TABLE {table}")
    assert read_report(directory, clock()).total.served_bytes == 100
    ledger = Ledger(directory, clock)
    Client(clock, ledger).ask("1", size=100)
    assert (await ledger.state()).total.served_bytes == 200
    await ledger.close()
    with sqlite3.connect(directory / DATABASE) as database:
        assert database.execute("PRAGMA user_version").fetchone() == (1,)


# What goes wrong.


async def test_a_damaged_ledger_is_begun_anew(directory, clock, caplog):
    directory.mkdir()
    (directory / DATABASE).write_bytes(b"this is no database" * 1000)
    ledger = Ledger(directory, clock)
    Client(clock, ledger).pull("1")
    state = await ledger.state()
    assert state.trouble == ""
    assert state.total.requests == {"hit": 5}
    await ledger.close()


async def test_one_damaged_while_it_is_open_loses_what_it_said_and_no_more(
    directory, clock, ledger
):
    Client(clock, ledger).pull("1")
    await ledger.state()
    for file in directory.iterdir():
        file.write_bytes(b"this is no database" * 1000)
    for _ in range(3):
        Client(clock, ledger).pull("2")
        await ledger.flush()
    state = await ledger.state()
    assert state.trouble == ""
    assert state.total.requests["hit"] >= 15


async def test_one_that_was_removed_is_begun_anew(directory, clock, ledger):
    Client(clock, ledger).pull("1")
    await ledger.state()
    for file in directory.iterdir():
        file.unlink()
    directory.rmdir()
    Client(clock, ledger).pull("2")
    assert await recent(ledger) == [("library/app", "2", 1)]


async def test_what_a_full_disk_does_not_take_is_written_later(directory, clock, ledger, caplog):
    client = Client(clock, ledger)
    client.pull("1")
    await ledger.flush()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    former = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))  # what a full disk looks like
    try:
        for number in range(3):
            client.pull(f"2.{number}")
            await ledger.flush()
        state = await ledger.state()
        assert state.trouble
        assert [pull.reference for pull in state.recent] == ["1"]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, former)
    state = await ledger.state()
    assert state.trouble == ""
    assert state.total.requests == {"hit": 20}
    assert len(state.recent) == 4
    assert sum("pulls go on" in message for message in caplog.messages) == 1


async def test_one_locked_for_too_long_waits(directory, clock, ledger, monkeypatch):
    monkeypatch.setattr("mirror.stats.db._BUSY_SECONDS", 0.05)
    client = Client(clock, ledger)
    client.pull("1")
    await ledger.flush()
    with sqlite3.connect(directory / DATABASE, isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        client.pull("2")
        state = await ledger.state()
        assert "locked" in state.trouble
        assert state.total.requests == {"hit": 5}, "it can still be read"
        other.execute("ROLLBACK")
    other.close()
    assert (await ledger.state()).total.requests == {"hit": 10}


async def test_no_address_of_a_client_is_kept(directory, clock):
    ledger = Ledger(directory, clock)
    Client(clock, ledger, address="192.0.2.77").pull("1")
    await ledger.close()
    assert all(b"192.0.2.77" not in file.read_bytes() for file in directory.iterdir())
