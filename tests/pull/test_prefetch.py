"""Layers are downloaded before the client asks for them, and never those that it has."""

import asyncio
import json
from contextlib import asynccontextmanager

import pytest

from mirror.pull.policy import PREFETCHES, PREFETCHES_OF_CLIENT, UNWANTED_BYTES
from tests.fakes import FakeRegistry, Image, image, random_bytes
from tests.fakes.office import EVERYBODY, Office, basic
from tests.running import Answer, Mirror, running
from tests.waiting import limit, until

pytestmark = [pytest.mark.slow]

HUB, REPO = "docker.io", "library/app"
APP = f"/v2/{REPO}"
MIB = 1 << 20
ANN = basic("ann", "secret")
BEHIND_A_PROXY = {"trusted_proxies": ["127.0.0.1"]}


def layered(count: int, size: int = 100_000) -> Image:
    return image(*(random_bytes(size, seed) for seed in range(count)))


def gets(upstream: FakeRegistry, digests: list[str]) -> list[int]:
    """How often upstream was asked for each blob."""
    asked = [each.path.rpartition("/")[2] for each in upstream.seen if each.method == "GET"]
    return [asked.count(digest) for digest in digests]


async def blob(mirror: Mirror, digest: str, **headers: str) -> Answer:
    return await mirror.get(f"{APP}/blobs/{digest}", **headers)


async def figure(mirror: Mirror, name: str, value: int) -> None:
    async with limit():
        while (await mirror.metrics())[name] != value:
            await asyncio.sleep(0.02)


async def all_ended(mirror: Mirror) -> None:
    await figure(mirror, "mirror_fills_in_progress", 0)


@asynccontextmanager
async def pulling(mirror: Mirror, upstream: FakeRegistry, digest: str, **headers: str):
    """A client has the first bytes of a layer, and gets the rest at the end of the context."""
    upstream.hold(1 << 16)
    reading = asyncio.create_task(blob(mirror, digest, **headers))
    await until(lambda: upstream.sent[digest])
    try:
        yield reading
    finally:
        upstream.release()
        await asyncio.wait([reading])


async def expected(mirror: Mirror, upstream: FakeRegistry, wanted: Image) -> list[str]:
    """Let the client have the manifest; return the digests of the layers."""
    upstream.add_image(REPO, wanted, "1")
    assert (await mirror.get(f"{APP}/manifests/1")).status == 200
    return wanted.digests[1:]


async def test_the_layers_after_the_first_are_downloaded_before_they_are_asked_for(
    mirror, upstream
):
    wanted = layered(5)
    layers = await expected(mirror, upstream, wanted)
    async with pulling(mirror, upstream, layers[0]):
        await until(lambda: gets(upstream, layers) == [1] * 5)
    await all_ended(mirror)
    await upstream.stop()
    answers = [await blob(mirror, digest) for digest in layers[1:]]
    assert [answer.body for answer in answers] == list(wanted.blobs[2:])
    assert [answer.headers["Cache-Status"] for answer in answers] == [
        "mirror; fwd=miss; stored"
    ] * 4
    again = await blob(mirror, layers[1])
    assert again.headers["Cache-Status"] == "mirror; hit"


async def test_a_layer_on_its_way_is_not_downloaded_again_for_the_client_that_asks(
    mirror, upstream
):
    wanted = layered(4)
    layers = await expected(mirror, upstream, wanted)
    async with pulling(mirror, upstream, layers[0]):
        await until(lambda: gets(upstream, layers) == [1] * 4)
        asked = [asyncio.create_task(blob(mirror, digest)) for digest in layers[1:]]
        await figure(mirror, "mirror_clients_waiting", 4)
    assert [(await each).body for each in asked] == list(wanted.blobs[2:])
    assert gets(upstream, layers) == [1] * 4


async def test_a_client_has_a_few_layers_downloaded_at_a_time_in_their_order(mirror, upstream):
    wanted = layered(20)
    layers = await expected(mirror, upstream, wanted)
    async with pulling(mirror, upstream, layers[0]) as reading:
        few = 1 + PREFETCHES_OF_CLIENT
        await until(lambda: sum(gets(upstream, layers)) == few)
        later = asyncio.create_task(blob(mirror, layers[1]))
        await until(lambda: sum(gets(upstream, layers)) == few + 1)
        assert gets(upstream, layers) == [1] * (few + 1) + [0] * (19 - few)
    assert (await reading).body == wanted.blobs[1]
    assert (await later).body == wanted.blobs[2]
    assert [(await blob(mirror, each)).body for each in layers] == list(wanted.blobs[1:])
    assert gets(upstream, layers) == [1] * 20


async def test_what_a_client_with_some_layers_has_is_not_downloaded(mirror, upstream):
    layers = await expected(mirror, upstream, layered(6))
    for each in layers[3:]:  # it has the first three, from elsewhere
        await blob(mirror, each)
    await all_ended(mirror)
    assert gets(upstream, layers) == [0, 0, 0, 1, 1, 1]


async def test_a_client_that_lacks_only_the_last_layer_gets_only_that(mirror, upstream):
    layers = await expected(mirror, upstream, layered(4))
    await blob(mirror, layers[3])
    await all_ended(mirror)
    assert gets(upstream, layers) == [0, 0, 0, 1]


async def test_the_first_layer_that_the_cache_lacks_brings_those_after_it(mirror, upstream):
    base = image(*(random_bytes(100_000, seed) for seed in (0, 1, 4)))
    upstream.add_image("library/base", base)
    for digest in base.digests:
        assert (await mirror.get(f"/v2/library/base/blobs/{digest}")).status == 200
    layers = await expected(mirror, upstream, layered(5))
    async with pulling(mirror, upstream, layers[2]):
        await until(lambda: gets(upstream, layers) == [1] * 5)
    await all_ended(mirror)
    results = [(await blob(mirror, each)).headers["Cache-Status"] for each in layers[3:]]
    assert results == ["mirror; fwd=miss; stored", "mirror; hit"]


async def test_a_layer_that_was_asked_for_out_of_order_is_not_downloaded_again(mirror, upstream):
    wanted = layered(4)
    layers = await expected(mirror, upstream, wanted)
    async with pulling(mirror, upstream, layers[2]) as second:
        assert gets(upstream, layers) == [0, 0, 1, 0], "the layers before it are missing"
        first = asyncio.create_task(blob(mirror, layers[0]))
        await until(lambda: gets(upstream, layers) == [1] * 4)
    assert (await first).body == wanted.blobs[1]
    assert (await second).body == wanted.blobs[3]


async def test_all_clients_together_have_some_layers_downloaded_ahead(tmp_path, upstream):
    async with running(tmp_path, {HUB: upstream.url}, server=BEHIND_A_PROXY) as mirror:
        images = [image(*(random_bytes(70_000, 9 * n + i) for i in range(9))) for n in range(4)]
        upstream.hold(1 << 16)
        reading = []
        for number, wanted in enumerate(images):
            client = f"10.0.0.{number}"
            digest = upstream.add_image(REPO, wanted)
            await mirror.get(f"{APP}/manifests/{digest}", X_Forwarded_For=client)
            pull = blob(mirror, wanted.digests[1], X_Forwarded_For=client)
            reading.append(asyncio.create_task(pull))
        every = [digest for wanted in images for digest in wanted.digests[1:]]
        await until(lambda: sum(gets(upstream, every)) == len(images) + PREFETCHES)
        upstream.release()
        assert all([(await each).status == 200 for each in reading])


async def test_downloads_end_when_the_client_leaves(mirror, upstream):
    layers = await expected(mirror, upstream, layered(5, 40 * MIB))
    async with pulling(mirror, upstream, layers[0]) as reading:
        await until(lambda: all(upstream.sent[each] for each in layers))
        reading.cancel()
        await figure(mirror, "mirror_clients_waiting", 0)
    await all_ended(mirror)
    assert sum(upstream.sent.values()) < 5 * (UNWANTED_BYTES + 16 * MIB), "and buffers on the way"


async def test_a_download_that_a_client_waits_for_takes_the_slot(tmp_path, upstream):
    limits = {"downloads": 3, "upstream_share": "100%", "client_share": "100%"}
    upstreams = {HUB: upstream.url}
    async with running(tmp_path, upstreams, limits=limits, server=BEHIND_A_PROXY) as mirror:
        wanted, other = layered(9), upstream.add_blob(random_bytes(200_000, 99))
        layers = await expected(mirror, upstream, wanted)
        async with pulling(mirror, upstream, layers[0]) as reading:
            await until(lambda: gets(upstream, layers)[:3] == [1, 1, 1])
            theirs = asyncio.create_task(blob(mirror, other, X_Forwarded_For="10.0.0.2"))
            await until(lambda: gets(upstream, [other]) == [1])
        assert (await theirs).status == (await reading).status == 200
        assert [(await blob(mirror, each)).body for each in layers] == list(wanted.blobs[1:])


async def test_nothing_more_is_downloaded_after_a_failure(mirror, upstream):
    wanted = layered(20)
    layers = await expected(mirror, upstream, wanted)
    for digest in layers[1:]:
        del upstream.blobs[digest]
    async with pulling(mirror, upstream, layers[0]):
        await until(lambda: sum(gets(upstream, layers)) == 1 + PREFETCHES_OF_CLIENT)
        await figure(mirror, "mirror_fills_in_progress", 1)
    assert sum(gets(upstream, layers)) == 1 + PREFETCHES_OF_CLIENT
    assert (await blob(mirror, layers[1])).status == 404


async def test_blocked_layers_are_not_downloaded(tmp_path, upstream):
    layers = layered(4).digests[1:]
    block = [{"image": layers[2]}]
    async with running(tmp_path, {HUB: upstream.url}, block=block) as mirror:
        await expected(mirror, upstream, layered(4))
        async with pulling(mirror, upstream, layers[0]):
            await until(lambda: gets(upstream, layers) == [1, 1, 0, 1])


async def test_layers_that_no_registry_serves_are_not_asked_for(mirror, upstream):
    wanted = layered(4)
    body = json.loads(wanted.manifest)
    body["layers"][2]["mediaType"] = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
    foreign = Image(json.dumps(body).encode(), wanted.media_type, wanted.blobs)
    layers = await expected(mirror, upstream, foreign)
    async with pulling(mirror, upstream, layers[0]):
        await until(lambda: gets(upstream, layers) == [1, 1, 0, 1])


@pytest.mark.parametrize("strange", ["artifact", "malformed", "large"])
async def test_only_layers_of_images_are_expected(mirror, upstream, strange):
    wanted = layered(3)
    body = json.loads(wanted.manifest)
    for layer in body["layers"]:
        if strange == "artifact":
            layer["mediaType"] = "application/vnd.cncf.helm.chart.content.v1.tar+gzip"
        elif strange == "malformed":
            layer["size"] = "many"
        else:
            layer["annotations"] = {"why": "x" * 20_000}
    layers = await expected(
        mirror, upstream, Image(json.dumps(body).encode(), wanted.media_type, wanted.blobs)
    )
    await blob(mirror, layers[0])
    await all_ended(mirror)
    assert gets(upstream, layers) == [1, 0, 0]


async def test_without_prefetch_each_layer_is_downloaded_when_it_is_asked_for(tmp_path, upstream):
    async with running(tmp_path, {HUB: upstream.url}, fill={"prefetch": False}) as mirror:
        layers = await expected(mirror, upstream, layered(3))
        await blob(mirror, layers[0])
        await all_ended(mirror)
        assert gets(upstream, layers) == [1, 0, 0]


async def test_private_layers_are_downloaded_only_at_the_request_of_a_client(tmp_path, upstream):
    office = Office(upstream, bearer=False)
    secret, free = layered(3), image(*(random_bytes(50_000, seed) for seed in (7, 8, 9)))
    office.add("team/app", secret, ANN)
    office.add("library/open", free, EVERYBODY)
    table = {"url": upstream.url, "client_credentials": True}
    async with running(tmp_path, {HUB: table}) as mirror:
        for repo, wanted in (("team/app", secret), ("library/open", free)):
            path = f"/v2/{repo}"
            manifest = await mirror.get(f"{path}/manifests/{wanted.digest}", Authorization=ANN)
            assert manifest.status == 200
            layer = await mirror.get(f"{path}/blobs/{wanted.digests[1]}", Authorization=ANN)
            assert layer.status == 200
        await until(lambda: all(gets(upstream, free.digests[2:])))
        await all_ended(mirror)
        assert gets(upstream, secret.digests[2:]) == [0, 0]


async def test_a_second_look_at_the_manifest_changes_nothing(mirror, upstream):
    wanted = layered(4)
    layers = await expected(mirror, upstream, wanted)
    async with pulling(mirror, upstream, layers[0]):
        await until(lambda: gets(upstream, layers) == [1] * 4)
        await mirror.get(f"{APP}/manifests/{wanted.digest}")
    await all_ended(mirror)
    assert gets(upstream, layers) == [1] * 4
    assert "fwd=miss" in (await blob(mirror, layers[3])).headers["Cache-Status"]
