"""``[[warm]]``: a running mirror pulls images by itself, before anybody asks."""

import asyncio
import logging
from typing import Any

import pytest

from tests.fakes import FakeRegistry, Fault, image, random_bytes
from tests.running import Mirror, configured, running
from tests.waiting import limit, until

pytestmark = [pytest.mark.slow]

MIB = 1 << 20
APP = image(random_bytes(MIB, 1), marker="app")
OTHER = image(random_bytes(MIB, 2), marker="other")


def often(*images: str, every: str = "1s", **keys) -> list[dict[str, Any]]:
    return [{"images": list(images), "every": every, **keys}]


@pytest.fixture
def hub(upstream: FakeRegistry) -> FakeRegistry:
    upstream.add_image("library/app", APP, "1")
    upstream.add_image("library/other", OTHER, "1")
    return upstream


@pytest.fixture(autouse=True)
def log(caplog):
    """A reload configures the log of this process, which is the tests'."""
    root, access = logging.getLogger(), logging.getLogger("mirror.access")
    before = (root.handlers[:], root.level, access.level)
    caplog.set_level(logging.INFO, "mirror.server.warming")
    yield caplog
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    access.setLevel(before[2])


def runs(log) -> list[logging.LogRecord]:
    """The summary of each run."""
    return [record for record in log.records if record.getMessage() == "warmed"]


async def is_served(mirror: Mirror, name: str, app) -> bool:
    """Whether the image is there: asked without starting a download."""
    answer = await mirror.get(f"/v2/library/{name}/manifests/{app.digest}")
    blobs = [await mirror.get(f"/v2/library/{name}/blobs/{digest}") for digest in app.digests]
    return {found.headers.get("Cache-Status") for found in (answer, *blobs)} == {"mirror; hit"}


async def test_what_is_listed_is_there_before_anybody_asks_and_the_log_says_so(tmp_path, hub, log):
    warm = often("app:1", "other:1")
    async with running(tmp_path, {"docker.io": hub.url}, warm=warm) as mirror:
        await until(lambda: runs(log))
        await hub.stop()
        assert await is_served(mirror, "app", APP)
        assert await is_served(mirror, "other", OTHER)
    record = runs(log)[0].__dict__
    assert (record["images"], record["failed"]) == (2, 0)
    assert record["fetched_bytes"] == sum(len(blob) for blob in (*APP.blobs, *OTHER.blobs))
    await hub.start()


def pulls(hub: FakeRegistry) -> list[str]:
    """The manifests that were pulled, without questions for signatures of cosign."""
    asked = [each for each in hub.seen if (each.kind, each.method) == ("manifest", "GET")]
    return [each.path for each in asked if not each.path.endswith((".sig", ".att"))]


async def test_again_and_again_at_the_cost_of_a_head_per_tag(tmp_path, hub, log):
    tags = {"max_age": "0s"}
    async with running(tmp_path, {"docker.io": hub.url}, warm=often("app:1"), tags=tags):
        await until(lambda: runs(log))
        hub.add_image("library/app", OTHER, "1")
        await until(lambda: len(pulls(hub)) > 1)
        await until(lambda: len(runs(log)) >= 3)
    assert len(pulls(hub)) == 2
    assert sum(hub.sent.values()) == sum(len(blob) for blob in (*APP.blobs, *OTHER.blobs))
    assert runs(log)[-1].__dict__["fetched_bytes"] == 0


async def test_an_upstream_that_is_down_is_tried_again(tmp_path, hub, log):
    await hub.stop()
    async with running(tmp_path, {"docker.io": hub.url}, warm=often("app:1")) as mirror:
        await until(lambda: runs(log))
        first = runs(log)[0]
        assert (first.levelno, first.__dict__["failed"]) == (logging.WARNING, 1)
        assert first.__dict__["reasons"].startswith("app:1: docker.io: ")
        await hub.start()
        await until(lambda: runs(log)[-1].__dict__["failed"] == 0)
        assert await is_served(mirror, "app", APP)


async def test_one_that_is_not_there_stops_no_other(tmp_path, hub, log):
    warm = often("app:nope", "nowhere.example.com/x", "app:1", every="1h")
    async with running(tmp_path, {"docker.io": hub.url}, warm=often(*warm[0]["images"])) as mirror:
        await until(lambda: runs(log))
        assert await is_served(mirror, "app", APP)
    record = runs(log)[0].__dict__
    assert (record["images"], record["failed"]) == (3, 2)
    assert "app:nope: docker.io: has no such thing in library/app" in record["reasons"]
    assert "not configured for nowhere.example.com" in record["reasons"]


async def test_clients_and_start_and_end_do_not_wait_for_it(tmp_path, hub, log):
    hub.faults.append(Fault("blob", "GET", hang_before=True, times=2))
    warm = often("app:1")
    async with limit(), running(tmp_path, {"docker.io": hub.url}, warm=warm) as mirror:
        await until(lambda: hub.count("blob", "GET") == 2)
        answer = await mirror.get(f"/v2/library/other/blobs/{OTHER.digests[1]}")
        assert answer.body == OTHER.blobs[1]
    assert runs(log) == []


async def test_it_takes_a_few_of_the_downloads_that_may_be(tmp_path, hub, log):
    hub.faults.append(Fault("blob", "GET", hang_before=True, times=99))
    layered = image(*(random_bytes(1000, seed) for seed in range(20)))
    hub.add_image("library/layered", layered, "1")
    warm = often("layered:1", parallel=50)
    limits = {"downloads": 12}
    async with running(tmp_path, {"docker.io": hub.url}, warm=warm, limits=limits) as mirror:
        await until(lambda: hub.count("blob", "GET") == 3)
        await mirror.get("/healthz")
        await asyncio.sleep(0.05)
        assert hub.count("blob", "GET") == 3


async def test_a_reload_brings_another_list(tmp_path, hub, log):
    upstreams = {"docker.io": hub.url}
    async with running(tmp_path, upstreams) as mirror:
        await mirror.reload(configured(tmp_path, upstreams, warm=often("app:1")))
        await until(lambda: hub.count("blob", "GET") == len(APP.blobs))
        await mirror.reload(configured(tmp_path, upstreams, warm=often("other:1")))
        await until(lambda: set(OTHER.digests) <= set(hub.sent))
        await mirror.reload(configured(tmp_path, upstreams))
        await until(lambda: "warm" not in {task.get_name() for task in asyncio.all_tasks()})


async def test_what_the_mirror_pulls_for_itself_counts_for_no_client(tmp_path, hub, log):
    async with running(tmp_path, {"docker.io": hub.url}, warm=often("app:1")) as mirror:
        await until(lambda: runs(log))
        figures = await mirror.metrics()
        served = [value for name, value in figures.items() if name.startswith("mirror_requests")]
        assert sum(served) == 0
