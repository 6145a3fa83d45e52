"""A worker tells the first process that its loop runs, and never waits for it."""

import asyncio
import os
from collections.abc import Iterator
from contextlib import closing
from multiprocessing import Pipe
from multiprocessing.connection import Connection

import pytest

from mirror.server.process import Stop, until_orphaned
from mirror.workers import channel
from mirror.workers.channel import MessageKind, WorkerChannel
from tests.waiting import limit


@pytest.fixture
def ends() -> Iterator[tuple[Connection, Connection]]:
    """The first process's end of a pipe, and that of a worker."""
    first, worker = Pipe()
    with closing(first), closing(worker):
        yield first, worker


async def test_a_first_process_that_reads_nothing_stops_no_worker(ends, monkeypatch):
    monkeypatch.setattr(channel, "BEAT_SECONDS", 0.0)
    first, worker = ends
    async with WorkerChannel(worker, os.getppid()).held(Stop()):
        for _ in range(10_000):  # far more than the pipe holds
            await asyncio.sleep(0)
    told = 0
    while first.poll():
        assert first.recv().news is MessageKind.ALIVE
        told += 1
    assert told > 10
    async with limit(), WorkerChannel(worker, os.getppid()).held(Stop()):
        while not first.poll():  # once it reads again, it is told again
            await asyncio.sleep(0.01)


async def test_a_worker_whose_first_process_was_gone_before_it_looked_stops():
    stop = Stop()
    async with limit():
        await until_orphaned(stop, parent=os.getpid())  # which is not its own parent
    assert stop.asked.is_set()
