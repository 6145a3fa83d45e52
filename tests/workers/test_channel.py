"""Workers send what they log to the first process, where several lines become one."""

import logging
import pickle
from contextlib import closing
from dataclasses import replace

import pytest

from mirror.access_log.answers import Answered, Content, RunningRequest
from mirror.workers.channel import LogForwarder, LogReceiver
from tests.access_log.test_pulls import BLOBS, CLIENT, HEAD, MANIFEST, TAG


@pytest.fixture
def receiver():
    with closing(LogReceiver()) as receiver:
        yield receiver


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.name == "mirror.access"]


def answered(*requests, client: str = CLIENT) -> list[Answered]:
    return [Answered(each, client, 1, 1.0, 1.5) for each in requests]


def test_a_pull_of_several_workers_is_one_line(receiver, caplog):
    caplog.set_level("INFO")
    workers = [LogForwarder(receiver.entrance) for _ in range(3)]
    assert not workers[2].take(answered(BLOBS[1]), ())
    assert not workers[1].take(answered(MANIFEST, BLOBS[0]), ())
    assert not workers[0].take(answered(HEAD, TAG), (), final=True)
    receiver.receive()
    assert not lines(caplog)
    receiver.receive(final=True)
    (line,) = lines(caplog)
    assert line == (
        "docker.io/library/redis:7  linux/amd64  10.1.2.3  Docker 28.0  hit  1.1 KiB in 0.5 s "
        "(2.2 KiB/s)"
    )


def test_many_requests_and_large_manifests_arrive(receiver, caplog):
    caplog.set_level("INFO")
    large = Content({f"sha256:{number:064}": 1 for number in range(1000)}, {})
    assert len(pickle.dumps(large)) > 64 * 1024
    worker = LogForwarder(receiver.entrance)
    running = [RunningRequest(str(number), "docker.io", "x") for number in range(100)]
    for number in range(3):
        worker.take(answered(replace(MANIFEST, content=large), client=str(number)), running)
        receiver.receive()
    receiver.receive(final=True)
    assert len(lines(caplog)) == 3


def test_a_first_process_that_is_gone_costs_lines_only():
    receiver = LogReceiver()
    entrance = receiver.entrance.dup()
    receiver.close()
    with closing(entrance):
        assert LogForwarder(entrance).take(answered(TAG), ()) == []


def test_a_trouble_that_all_workers_meet_is_one_line_a_minute(caplog):
    now = [1000.0]
    with closing(LogReceiver(lambda: now[0])) as receiver:
        workers = [LogForwarder(receiver.entrance) for _ in range(3)]

        def told(
            text: str,
            name: str = "mirror.upstream.breaker",
            level: int = logging.WARNING,
            **fields: str,
        ):
            record = logging.makeLogRecord({"name": name, "levelno": level, "msg": text, **fields})
            return [worker.hand_on(record) for worker in workers]

        for _ in range(2):
            for seconds in range(3):
                assert told("docker.io does not answer") == [True] * 3
                assert told("docker.io does not answer (not asked again)") == [True] * 3
                assert told(f"docker.io answers again, after {seconds} s") == [True] * 3
            receiver.receive()
            now[0] += 60
        assert (
            caplog.messages
            == ["docker.io does not answer", "docker.io answers again, after 0 s"] * 2
        )
        assert told("one request", "mirror.access") == [False] * 3, "each worker logs its own"
        assert told("a detail", level=logging.INFO) == [False] * 3
        assert told("policy", "mirror.pull.gate", decision="blocked") == [False] * 3, "an event"


def test_a_worker_without_a_first_process_logs_its_troubles_itself():
    receiver = LogReceiver()
    entrance = receiver.entrance.dup()
    receiver.close()
    with closing(entrance):
        fields = {"name": "mirror.pull.slots", "levelno": logging.WARNING, "msg": "no room"}
        assert not LogForwarder(entrance).hand_on(logging.makeLogRecord(fields))
