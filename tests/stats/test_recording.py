"""The ledger of a running mirror after a known sequence of pulls."""

import asyncio
import os
import time
from pathlib import Path

import pytest

from mirror.stats.queries import read_report
from mirror.stats.report import StatsReport
from tests.fakes import FakeRegistry, Image, image, random_bytes
from tests.fakes.content import index
from tests.running import Mirror, running
from tests.waiting import limit, until

pytestmark = pytest.mark.slow

DOCKER = "docker/20.10.24 go/go1.19 UpstreamClient(Docker-Client/20.10.24 \\(linux\\))"
PODMAN = "libpod/4.3.1"


def said(directory: Path) -> StatsReport:
    return read_report(directory / "cache" / "ledger", time.time())


async def pull(mirror: Mirror, app: Image, repository="library/app", tag="1", agent=DOCKER) -> None:
    """As dockerd does it."""
    base = f"/v2/{repository}"
    await mirror.get(f"{base}/manifests/{tag}", "HEAD", User_Agent=agent)
    await mirror.get(f"{base}/manifests/{tag}", User_Agent=agent)
    await mirror.get(f"{base}/manifests/{app.digest}", User_Agent=agent)
    for digest in app.digests:
        await mirror.get(f"{base}/blobs/{digest}", User_Agent=agent)


@pytest.mark.usefixtures("one_day")
async def test_it_says_what_was_done_also_after_a_restart(tmp_path, upstream):
    app = image(random_bytes(200_000), random_bytes(3_000, seed=1))
    other = image(random_bytes(10_000, seed=2))
    listed = upstream.add_manifest(
        "library/app", index(app), "application/vnd.oci.image.index.v1+json", "1"
    )
    upstream.add_image("library/app", app)
    upstream.add_image("library/other", other, "2")
    size, manifest = sum(map(len, app.blobs)), len(app.manifest)
    listing = len(upstream.manifests["library/app", listed][0])
    async with running(tmp_path / "cache", {"docker.io": upstream.url}) as mirror:
        for _ in range(3):  # the third is repeated without being parsed
            await pull(mirror, app)
        await pull(mirror, app, agent=PODMAN)
        await pull(mirror, other, "library/other", "2")
        await mirror.get("/v2/library/app/manifests/none")
        await mirror.get("/v2/")
    state = said(tmp_path)
    assert state.trouble == ""
    first, second, third = state.recent
    assert (first.repository, first.reference, first.client) == ("library/other", "2", "Docker")
    assert (first.times, first.result) == (1, "miss")
    assert (second.client, second.times, second.result) == ("Podman", 1, "hit")
    assert second.sent_bytes == size + manifest + listing
    assert second.missed_bytes == 0
    assert (third.client, third.times, third.result) == ("Docker", 3, "miss")
    assert third.sent_bytes == 3 * (size + manifest + listing)
    assert third.missed_bytes == size + manifest + listing
    pulled, rest = state.most_pulled
    assert (pulled.repository, pulled.reference, pulled.pulls) == ("library/app", "1", 4)
    assert (pulled.digest, pulled.size) == (app.digest, size)
    assert (rest.repository, rest.pulls) == ("library/other", 1)
    assert state.largest == (pulled, rest)
    assert state.longest_unused == (pulled, rest)
    (account,) = state.upstreams
    assert account.name == "docker.io"
    assert account.total == account.today == state.total
    assert account.total.requests == {"miss": 9, "hit": 20, "negative": 1}
    assert account.up
    got = size + manifest + listing + len(other.blobs[1]) + len(other.manifest)  # one config
    assert account.total.upstream_bytes == got
    async with running(tmp_path / "cache", {"docker.io": upstream.url}) as mirror:
        await pull(mirror, app)
    again = said(tmp_path)
    assert again.since == state.since
    assert again.most_pulled[0].pulls == 5
    assert again.total.upstream_bytes == got
    assert sum(again.total.requests.values()) == sum(state.total.requests.values()) + 6


@pytest.mark.long
async def test_a_download_under_way_is_seen_until_it_ends(tmp_path):
    data = random_bytes(6 << 20)
    async with FakeRegistry() as upstream:
        digest = upstream.add_blob(data)
        async with running(tmp_path / "cache", {"docker.io": upstream.url}) as mirror:

            def fills() -> list[tuple[str, str, int | None, int, int]]:
                state = read_report(tmp_path / "cache" / "ledger", time.time())
                return [
                    (it.digest, it.repository, it.total, it.waiting, it.length)
                    for it in state.fills
                ]

            upstream.hold(1 << 20)
            pulls = [
                asyncio.create_task(mirror.get(f"/v2/library/app/blobs/{digest}")) for _ in range(3)
            ]

            async def is_seen(least: int, most: int) -> None:
                upstream.hold(most)
                expected = [(digest, "library/app", len(data), 3)]
                await until(lambda: [it[:4] for it in fills()] == expected)
                await until(lambda: any(it[4] >= least for it in fills()))
                assert all(it[4] <= most for it in fills())

            await is_seen(1, 1 << 20)
            await is_seen(2 << 20, 4 << 20)
            upstream.release()
            assert [(await pull).body for pull in pulls] == [data] * 3
            await until(lambda: fills() == [])


async def test_a_ledger_that_cannot_be_kept_fails_no_pull(tmp_path, upstream):
    app = image(random_bytes(20_000))
    upstream.add_image("library/app", app, "1")
    (tmp_path / "cache").mkdir(mode=0o700)
    (tmp_path / "cache" / "ledger").write_text("in the way")
    async with running(tmp_path / "cache", {"docker.io": upstream.url}) as mirror:
        await pull(mirror, app)
        os.unlink(tmp_path / "cache" / "ledger")
        async with limit():
            while not said(tmp_path).recent:
                await asyncio.sleep(0.05)
    assert [pull.times for pull in said(tmp_path).recent] == [1]
