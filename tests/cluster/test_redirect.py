"""Redirects to the object store: which requests are answered so, and what their clients get."""

import asyncio
import ipaddress
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from mirror.cluster.objects import opened_bucket, opened_clients
from mirror.cluster.redirect import Redirects
from mirror.cluster.shared import opened_objects
from mirror.oci.digest import Digest
from mirror.pull.outcome import Outcome
from tests.cluster.conftest import of_fake, unused
from tests.cluster.test_tiers import key, options, path
from tests.fakes import random_bytes
from tests.fakes.content import digest_of, image
from tests.fakes.memory_store import MemoryStore
from tests.fakes.office import Office, basic
from tests.proxy.clients import ask as proxied
from tests.proxy.clients import trusting
from tests.running import Answer, Mirror, configured, eventually, running
from tests.waiting import limit

pytestmark = [pytest.mark.slow]

MIB = 1 << 20
DATA = random_bytes(3 * MIB)
DIGEST = digest_of(DATA)
NEAR, ALSO_NEAR, FAR = "10.1.0.7", "10.1.0.8", "10.2.0.7"
PROXIED = {"trusted_proxies": ["127.0.0.1/32"]}
HIT = f'mirror_requests_total{{kind="blob",result="{Outcome.HIT}",upstream="docker.io"}}'


@pytest.fixture
def opened(tmp_path, upstream, fake):
    """Run a mirror that redirects clients of 10.1.0.0/16; ``upstream`` has keys of docker.io."""

    @asynccontextmanager
    async def run(cluster: Any = None, upstreams: Any = None, **sections: Any):
        table = {**options(fake), "redirect_networks": ["10.1.0.0/16"], **(cluster or {})}
        hub = {"docker.io": {"url": upstream.url, **(upstreams or {})}}
        async with running(tmp_path / "cache", hub, cluster=table, server=PROXIED, **sections) as m:
            yield m

    return run


@pytest.fixture
async def mirror(opened) -> AsyncIterator[Mirror]:
    async with opened() as mirror:
        yield mirror


async def ask(mirror: Mirror, place: str, client: str = NEAR, method: str = "GET", **fields: str):
    """Ask as a client with this address; redirects are not followed."""
    headers = {"X-Forwarded-For": client, **{k.replace("_", "-"): v for k, v in fields.items()}}
    url = mirror.url + place
    asked = mirror.session.request(method, url, headers=headers, allow_redirects=False)
    async with asked as response:
        return Answer(response.status, response.headers, await response.read())


async def follow(mirror: Mirror, answer: Answer) -> Answer:
    assert answer.status == 307
    async with mirror.session.get(answer.headers["Location"]) as response:
        return Answer(response.status, response.headers, await response.read())


async def test_a_client_of_a_listed_network_gets_a_blob_from_the_object_store(
    mirror, upstream, fake
):
    fake.objects[key(DIGEST)] = DATA
    answer = await ask(mirror, path(DIGEST))
    assert (answer.status, answer.body) == (307, b"")
    assert answer.headers["Location"].startswith(f"{fake.url}/images/{key(DIGEST)}?X-Amz-")
    assert "X-Amz-Expires=300&" in answer.headers["Location"]
    assert answer.headers["Cache-Status"] == "mirror; hit; detail=redirect"
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["Docker-Content-Digest"] == DIGEST
    assert (await follow(mirror, answer)).body == DATA
    assert upstream.seen == []
    await eventually(mirror, HIT, 1)
    figures = await mirror.metrics()
    assert figures['mirror_tier_requests_total{operation="sign",result="hit",tier="objects"}'] == 1
    served = 'mirror_served_bytes_total{kind="blob",upstream="docker.io"}'
    assert figures.get(served, 0) == 0
    assert figures.get('mirror_tier_bytes_total{direction="in",tier="objects"}', 0) == 0


@pytest.mark.parametrize(
    ("method", "client", "fields"),
    [
        ("HEAD", NEAR, {}),
        ("GET", FAR, {}),
        ("GET", "for=nonsense", {}),
        ("GET", NEAR, {"range": "bytes=0-"}),
        ("GET", NEAR, {"If_None_Match": f'"{DIGEST}"'}),
    ],
)
async def test_other_requests_are_answered_here(mirror, upstream, fake, method, client, fields):
    fake.objects[key(DIGEST)] = DATA
    upstream.add_blob(DATA)
    for _ in range(2):  # also when the blob is in the cache
        answer = await ask(mirror, path(DIGEST), client, method, **fields)
        assert answer.status in {200, 206, 304}
        assert "Location" not in answer.headers
    assert (await follow(mirror, await ask(mirror, path(DIGEST), ALSO_NEAR))).body == DATA
    answer = await ask(mirror, path(DIGEST), client, method, **fields)
    assert "Location" not in answer.headers, "nor is the redirect repeated"


async def test_small_blobs_and_manifests_are_answered_here(mirror, upstream, fake):
    content = image(random_bytes(MIB))
    upstream.add_image("library/app", content, "1")
    fake.objects[key(content.digests[1])] = content.blobs[1]
    for place in ("manifests/1", f"blobs/{content.digests[1]}"):
        for _ in range(2):
            assert (await ask(mirror, f"/v2/library/app/{place}")).status == 200


async def test_a_client_that_asks_again_gets_the_bytes(mirror, fake):
    fake.objects[key(DIGEST)] = DATA
    assert (await ask(mirror, path(DIGEST))).status == 307
    for _ in range(2):
        assert (await ask(mirror, path(DIGEST))).body == DATA
    assert (await ask(mirror, path(DIGEST), ALSO_NEAR)).status == 307


async def test_a_client_whose_redirect_led_to_nothing_gets_the_blob_by_asking_again(
    mirror, upstream, fake
):
    upstream.add_blob(DATA)
    fake.objects[key(DIGEST)] = DATA
    answer = await ask(mirror, path(DIGEST))
    del fake.objects[key(DIGEST)]
    assert (await follow(mirror, answer)).status == 404
    assert (await ask(mirror, path(DIGEST))).body == DATA
    fake.objects.pop(key(DIGEST), None)  # it was uploaded again
    assert (await ask(mirror, path(DIGEST), ALSO_NEAR)).body == DATA


@pytest.mark.parametrize("fault", ["hang", "500"])
async def test_clients_are_served_while_the_object_store_fails(opened, upstream, fake, fault):
    upstream.add_blob(DATA)
    fake.objects[key(DIGEST)] = DATA
    if fault == "hang":
        fake.hang.clear()
    else:
        fake.status = 500
    async with opened({"first_byte_timeout": "500ms"}) as mirror:
        for client in (NEAR, ALSO_NEAR):
            assert (await ask(mirror, path(DIGEST), client)).body == DATA
        fake.hang.set()
        fake.status = 0
        async with limit():
            while (await ask(mirror, path(DIGEST))).status != 307:
                await asyncio.sleep(0.05)


async def test_a_blocked_blob_is_refused(opened, fake):
    fake.objects[key(DIGEST)] = DATA
    async with opened(block=[{"image": DIGEST, "reason": "bad"}]) as mirror:
        assert (await ask(mirror, path(DIGEST))).status == 403
    async with opened(upstreams={"deny": ["library/*"]}) as mirror:
        assert (await ask(mirror, path(DIGEST))).status == 403
    assert fake.asked["HEAD"] == 0


async def test_a_private_blob_is_not_redirected(opened, upstream, fake):
    ann, content = basic("ann", "secret"), image(DATA)
    Office(upstream).add("team/app", content, ann)
    fake.objects[key(DIGEST)] = DATA
    place = f"/v2/team/app/blobs/{DIGEST}"
    async with opened(upstreams={"client_credentials": True}) as mirror:
        for _ in range(2):
            answer = await ask(mirror, place, Authorization=ann)
            assert (answer.status, answer.body) == (200, DATA)


async def test_requests_through_the_proxy_are_not_redirected(opened, upstream, fake, tmp_path):
    fake.objects[key(DIGEST)] = DATA
    upstream.add_blob(DATA)
    networks = {"redirect_networks": ["127.0.0.0/8", "10.1.0.0/16"]}
    async with opened(networks, proxy={"listen": "127.0.0.1:0"}) as mirror:
        url = f"https://registry-1.docker.io{path(DIGEST)}"
        answer = await proxied(mirror, trusting(tmp_path / "cache"), url)
        assert (answer.status, answer.body) == (200, DATA)
        assert (await ask(mirror, path(DIGEST))).status == 307


@pytest.mark.usefixtures("log")
async def test_a_reload_changes_whose_clients_are_redirected(opened, upstream, fake, tmp_path):
    fake.objects[key(DIGEST)] = DATA
    upstream.add_blob(DATA)
    async with opened({"redirect_networks": []}) as mirror:
        for networks, status in ([], 200), (["10.0.0.0/8"], 307), (["10.2.0.0/16"], 200):
            table = {**options(fake), "redirect_networks": networks}
            hub = {"docker.io": upstream.url}
            config = configured(tmp_path / "cache", hub, cluster=table, server=PROXIED)
            await mirror.reload(config)
            assert (await ask(mirror, path(DIGEST))).status == status


async def test_credentials_that_cannot_sign_are_one_warning(opened, fake, monkeypatch, caplog):
    monkeypatch.setenv("AWS_SKIP_SIGNATURE", "true")
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:1")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    fake.objects[key(DIGEST)] = DATA
    async with opened() as mirror:
        for client in (NEAR, ALSO_NEAR):
            assert (await ask(mirror, path(DIGEST), client)).body == DATA
    (warning,) = (text for text in caplog.messages if text.startswith("clients are not"))
    assert warning.startswith("clients are not redirected: s3://images/cache: ")


async def test_times_and_signatures_are_tried_again(fake, events, monkeypatch, caplog):
    now, network, digest = [0.0], [ipaddress.ip_network("10.1.0.0/16")], Digest.parse(DIGEST)
    bucket = opened_bucket(of_fake(fake), events)
    redirects = Redirects(bucket, lambda: now[0])

    async def is_redirected(at: float, client: str) -> bool:
        now[0] = at
        return await redirects.address(network, client, digest) is not None

    assert not await is_redirected(0, NEAR)
    fake.objects[key(DIGEST)] = DATA
    assert [await is_redirected(at, NEAR) for at in (9, 11, 310, 312)] == [False, True, False, True]
    good = bucket.clients
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:1")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    bucket.clients = good._replace(signing=opened_clients(of_fake(fake)).signing)
    assert not await is_redirected(400, ALSO_NEAR)
    assert "clients are not redirected: s3://images" in caplog.text
    bucket.clients = good
    assert not await is_redirected(459, ALSO_NEAR)
    assert await is_redirected(461, ALSO_NEAR)
    assert redirects.trouble.problem is None
    assert "clients are redirected again" in caplog.text
    await redirects.close()
    await bucket.close()


async def test_what_clients_were_sent_to_counts_as_used(fake, tmp_path, events):
    fake.objects[key(DIGEST)] = DATA
    memory = MemoryStore(1_000_000)
    parts = memory.blobs, memory.manifests, memory.tags, tmp_path, unused, events
    async with opened_objects(of_fake(fake), *parts) as shared:
        network = [ipaddress.ip_network("10.1.0.0/16")]
        assert await shared.redirects.address(network, NEAR, Digest.parse(DIGEST))
        shared.sweeper.max_bytes = len(DATA)
        await shared.sweeper.sweep()
    assert f"cache/used/{key(DIGEST).removeprefix('cache/')}" in fake.objects
