"""Workers send their requests to the first process, where pulls of several workers are one line."""

import pickle
from contextlib import closing
from dataclasses import replace

import pytest

from mirror.access_log import PullForwarder, PullReceiver
from mirror.access_log.answers import Answered, Content, RunningRequest
from tests.access_log.test_pulls import BLOBS, CLIENT, HEAD, MANIFEST, TAG


@pytest.fixture
def receiver():
    with closing(PullReceiver()) as receiver:
        yield receiver


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.name == "mirror.access"]


def answered(*requests, client: str = CLIENT) -> list[Answered]:
    return [Answered(each, client, 1, 1.0, 1.5) for each in requests]


def test_a_pull_of_several_workers_is_one_line(receiver, caplog):
    caplog.set_level("INFO")
    workers = [PullForwarder(receiver.entrance) for _ in range(3)]
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
    worker = PullForwarder(receiver.entrance)
    running = [RunningRequest(str(number), "docker.io", "x") for number in range(100)]
    for number in range(3):
        worker.take(answered(replace(MANIFEST, content=large), client=str(number)), running)
        receiver.receive()
    receiver.receive(final=True)
    assert len(lines(caplog)) == 3


def test_a_first_process_that_is_gone_costs_lines_only():
    receiver = PullReceiver()
    entrance = receiver.entrance.dup()
    receiver.close()
    with closing(entrance):
        assert PullForwarder(entrance).take(answered(TAG), ()) == []
