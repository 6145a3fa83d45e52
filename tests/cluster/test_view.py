"""The state of all replicas: for pages, commands and programs."""

import asyncio
import json
import re
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from mirror.admin.commands import stats
from mirror.cli.stats import print_statistics
from tests.cluster.replicas import Replicas, replicas
from tests.fakes import image
from tests.peers.process import free_port
from tests.running import configured, eventually
from tests.ui.test_status import page, rows, words
from tests.waiting import limit

pytestmark = [pytest.mark.slow]

APP = image(b"layer of the application", marker="app")
MANIFEST = "/v2/library/app/manifests/1"
SIZE = len(APP.manifest)


#: Of a replica whose start is no time.
TOTAL = {"results": {}, "served_bytes": 0, "upstream_bytes": 0}
LATE = json.dumps(
    {
        "cache": {"bytes": 0, "max_bytes": 0, "objects": 0},
        "running": {"version": "1", "started": "9999-12-31T23:59:59-23:59"},
        "total": TOTAL,
        "today": TOTAL,
        "problems": [],
    }
).encode()


def config_of(directory, upstream, number: int, peers: list[str]):
    """The configuration for commands of a replica."""
    secret = str(directory / "secret")
    cluster = {"peers": peers, "advertise": peers[number], "secret_file": secret}
    cache = directory / f"cache{number}"
    return configured(cache, {"docker.io": upstream.url}, cluster=cluster)


@asynccontextmanager
async def answering(answer):
    """Something that answers all requests in place of a replica; return its address."""
    runner = web.ServerRunner(web.Server(answer), shutdown_timeout=0.1)
    await runner.setup()
    port = free_port()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        await runner.cleanup()


async def test_the_figures_of_all_replicas_are_added_up(tmp_path, upstream, capsys):
    upstream.add_image("library/app", APP, "1")
    async with replicas(tmp_path, upstream, 2) as cluster:
        one, two = cluster.mirrors
        for mirror, times in ((one, 1), (two, 3)):
            for _ in range(times):
                await mirror.get(MANIFEST)
            await eventually(mirror, "mirror_cache_objects", 1)
        first, second = cluster.addresses

        async def requests(mirror) -> int:
            said = json.loads((await mirror.get("/api/v1/stats")).body)
            return int(said["total"]["requests"])

        async with limit():
            while (await requests(one), await requests(two)) != (1, 3):  # written once a second
                await asyncio.sleep(0.05)
        config = config_of(tmp_path, upstream, 0, cluster.addresses)
        async with limit():  # a replica has a second to answer
            while (everything := await stats(config))["cluster"]["problems"]:
                await asyncio.sleep(0.5)
        found = everything["cluster"]
        assert found["total"]["requests"] == 4
        assert found["total"]["served_bytes"] == 4 * SIZE
        assert found["cache"]["objects"] == 2
        each = {told["address"]: told for told in found["replicas"]}
        assert [each[address]["total"]["requests"] for address in (first, second)] == [1, 3]
        assert [each[address]["here"] for address in (first, second)] == [True, False]
        assert all(
            told["answers"] and told["version"] and told["started"] for told in each.values()
        )
        print_statistics(everything)
        said = capsys.readouterr().out
        assert "cluster of 2 replicas\n" in said
        assert f"{first} (here)  up" in said
        assert "cluster" not in await stats(config, local=True)
        async with limit():
            while "no answer" in (text := await page(one)):
                await asyncio.sleep(0.5)
        assert {row.partition(" ")[0] for row in rows(text, "Replicas")} == {first, second}
        assert re.search(r"Together: hit rate 50.0\s% of 4 requests", words(text)), words(text)


async def test_a_replica_that_does_not_answer_is_the_first_row_and_a_trouble(
    tmp_path, upstream, capsys
):
    cluster = Replicas(tmp_path, upstream, 2)
    try:
        mirror = await cluster.start()
        down = cluster.addresses[1]
        text = await page(mirror)
        assert rows(text, "Replicas")[0].startswith(f"{down} no answer")
        assert f"No figures from the replica {down} {down} does not answer" in words(text)
        config = config_of(tmp_path, upstream, 0, cluster.addresses)
        print_statistics(await stats(config))
        said = capsys.readouterr().out
        assert "cluster of 2 replicas, 1 without an answer\n" in said
        assert f"{down} does not answer: look at its log" in said
        # A replica that asks this one gets an answer that waits for no third one.
        assert json.loads((await mirror.get("/api/v1/stats")).body)["problems"] == []
    finally:
        await cluster.close()


@pytest.mark.long
async def test_a_replica_that_hangs_does_not_hold_the_page_and_comes_back(tmp_path, upstream):
    hang, asked = asyncio.Event(), []

    async def answer(_: web.BaseRequest) -> web.Response:
        asked.append(1)
        await hang.wait()
        said = {"version": "9", "started": "2026-01-01T00:00:00Z"}
        figures = {"results": {"hit": 2}, "served_bytes": 5, "upstream_bytes": 0}
        cache = {"bytes": 1, "max_bytes": 2, "objects": 1}
        told = {"running": said, "total": figures, "today": figures, "cache": cache}
        return web.json_response({**told, "problems": [{}, {}]})

    cluster = Replicas(tmp_path, upstream, 1)
    async with answering(answer) as odd:
        try:
            mirror = await cluster.start([*cluster.addresses, odd])
            pages = await asyncio.gather(*(page(mirror) for _ in range(5)))
            assert all(rows(text, "Replicas")[0].startswith(f"{odd} no answer") for text in pages)
            assert len(asked) < len(pages)
            hang.set()
            while not rows(text := await page(mirror), "Replicas")[0].startswith(
                f"{odd} 2 troubles"
            ):
                await asyncio.sleep(0.1)
            assert "No figures" not in text
        finally:
            hang.set()
            await cluster.close()


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        (b"[]", 200, "has another version, or is no mirror"),
        (b'{"running": {"version": 1}}', 200, "has another version, or is no mirror"),
        (LATE, 200, "has another version, or is no mirror"),
        (b"{" + b" " * 2_000_000, 200, "answers no JSON object"),
        (b'{"errors": [{"message": "the cache cannot be read"}]}', 503, "the cache cannot be read"),
        (b'{"errors": 5}', 500, "answers 500"),
        (b'{"errors": [{"message": "\\u001b[31m"}]}', 500, r"answers 500: '\x1b[31m'"),
    ],
)
async def test_answers_of_another_form_are_a_trouble(tmp_path, upstream, body, status, reason):
    async def answer(_: web.BaseRequest) -> web.Response:
        return web.Response(body=body, status=status)

    cluster = Replicas(tmp_path, upstream, 1)
    async with answering(answer) as odd:
        try:
            mirror = await cluster.start([*cluster.addresses, odd])
            said = json.loads((await mirror.get("/api/v1/replicas")).body)
        finally:
            await cluster.close()
    (problem,) = said["problems"]
    assert reason in problem["cause"]
    assert [each["answers"] for each in said["replicas"]] == [False, True]


async def test_a_mirror_without_others_has_no_replicas(tmp_path, upstream, mirror, redis):
    cluster = Replicas(tmp_path, upstream, 1, state=redis.url)
    try:
        for each in (mirror, await cluster.start([])):
            assert (await each.get("/api/v1/replicas")).status == 404
            assert ">Replicas<" not in await page(each)
    finally:
        await cluster.close()


async def test_replicas_that_a_reload_names_are_shown_at_once(tmp_path, upstream, redis):
    cluster = Replicas(tmp_path, upstream, 2, state=redis.url)
    try:
        alone = await cluster.start([])
        await cluster.start([])
        await cluster.reload(0, cluster.addresses)
        said = json.loads((await alone.get("/api/v1/replicas")).body)
        assert [each["address"] for each in said["replicas"]] == sorted(cluster.addresses)
        assert ">Replicas<" in await page(alone)
        await cluster.reload(0, [])
        assert (await alone.get("/api/v1/replicas")).status == 404
    finally:
        await cluster.close()
