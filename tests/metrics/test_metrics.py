"""What is counted in batches comes to what it would have been counted one by one."""

import asyncio

from mirror.http.exchange import AccessRecord, Exchange
from mirror.http.forwarded import Origin
from mirror.metrics.batch import MetricBatch, MetricBatcher
from mirror.metrics.metrics import Metrics
from mirror.pull.outcome import Outcome
from tests.waiting import limit

TIMES = [0.0, 0.0005, 0.001, 0.0011, 0.025, 3.0, 30.0, 31.0, 1e6]


def exchange(seconds: float = 0.0) -> Exchange:
    told = Exchange(0.0, Origin("", "http", ""), upstream="docker.io", kind="blob")
    told.outcome, told.sent_bytes, told.first_byte = Outcome.HIT, 70, seconds
    return told


async def test_a_batch_is_counted_as_its_answers_would_have_been():
    one_by_one, at_once = Metrics("1"), Metrics("1")
    for seconds in TIMES:
        one_by_one.request_ended(AccessRecord(exchange(seconds), "GET", "/", "", "", seconds))
    tally = at_once.batcher.metric(at_once.repeated(exchange()))
    for seconds in TIMES:
        tally.add(seconds)
    assert requests(at_once) == requests(one_by_one)


def requests(metrics: Metrics) -> list[str]:
    names = ("mirror_request", "mirror_served", "mirror_transfer")
    return [line for line in metrics.rendered()[0].decode().splitlines() if line.startswith(names)]


async def test_what_is_counted_is_told_soon_and_once():
    told: list[MetricBatch] = []
    heard = asyncio.Event()

    def hear(batch: MetricBatch) -> None:
        told.append(batch)
        heard.set()

    tally = MetricBatcher([1.0]).metric(hear)
    for seconds in (0.5, 2.0, 1.0):
        tally.add(seconds)
    assert not told
    async with limit():
        await heard.wait()
    assert told == [MetricBatch(3, 3.5, [2, 1])]
    heard.clear()
    tally.add(4.0)
    async with limit():
        await heard.wait()
    assert told[1:] == [MetricBatch(1, 4.0, [0, 1])]
