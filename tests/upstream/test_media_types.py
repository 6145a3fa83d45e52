"""What a digest does not cover is the word of one upstream, and is not given out as another's."""

import asyncio
import json

import pytest

from mirror import __version__
from mirror.metrics.metrics import Metrics
from mirror.oci.digest import Digest
from mirror.server.store import opened_store
from mirror.store.interface import Manifest
from tests.fakes import FakeRegistry, Fault, image, random_bytes
from tests.fakes.content import DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST, digest_of
from tests.running import configured, running
from tests.waiting import limit

pytestmark = [pytest.mark.slow]

ONE, OTHER = "one.test", "other.test"
NO_FRESH_TAGS = {"max_age": "0s", "negative_max_age": "0s"}


def unstated(manifest: bytes) -> bytes:
    """The same manifest without its mediaType."""
    fields = json.loads(manifest)
    del fields["mediaType"]
    return json.dumps(fields).encode()


IMAGE = unstated(image(b"layer").manifest)
INDEX = json.dumps(
    {
        "schemaVersion": 2,
        "manifests": [{"mediaType": OCI_MANIFEST, "digest": digest_of(IMAGE), "size": len(IMAGE)}],
    }
).encode()


def path(upstream: str, reference: str, kind: str = "manifests") -> str:
    return f"/v2/{upstream}/app/{kind}/{reference}"


@pytest.fixture
async def registries():
    async with FakeRegistry() as one, FakeRegistry() as other:
        yield {ONE: one, OTHER: other}


def upstreams(registries):
    hub = {"docker.io": {"url": "http://127.0.0.1:1"}}
    return hub | {name: {"url": registry.url} for name, registry in registries.items()}


@pytest.mark.parametrize(
    ("body", "wrong", "right"),
    [
        (IMAGE, OCI_INDEX, OCI_MANIFEST),
        (IMAGE, DOCKER_LIST, DOCKER_MANIFEST),
        (INDEX, OCI_MANIFEST, OCI_INDEX),
        (INDEX, DOCKER_MANIFEST, DOCKER_LIST),
    ],
)
@pytest.mark.parametrize("reference", ["latest", "digest"])
async def test_a_media_type_that_the_bytes_contradict_is_refused_and_not_kept(
    tmp_path, registries, body, wrong, right, reference
):
    registries[ONE].add_manifest("app", body, wrong, "latest")
    registries[OTHER].add_manifest("app", body, right, "latest")
    reference = digest_of(body) if reference == "digest" else reference
    async with running(tmp_path, upstreams(registries), tags=NO_FRESH_TAGS) as mirror:
        assert (await mirror.get(path(ONE, reference))).status == 502
        for method in ("GET", "HEAD"):
            answer = await mirror.get(path(OTHER, reference), method)
            assert (answer.status, answer.headers["Content-Type"]) == (200, right)
        again = await mirror.get(path(ONE, reference))
        assert again.headers["Content-Type"] != wrong, "the bytes are known by now"


@pytest.mark.parametrize(
    ("body", "types"),
    [(IMAGE, (DOCKER_MANIFEST, OCI_MANIFEST)), (INDEX, (DOCKER_LIST, OCI_INDEX))],
)
@pytest.mark.parametrize("first", [ONE, OTHER])
@pytest.mark.parametrize("tags", [{}, NO_FRESH_TAGS])
async def test_each_upstream_has_its_own_word_on_what_the_bytes_leave_open(
    tmp_path, registries, body, types, first, tags
):
    said = dict(zip((ONE, OTHER), types, strict=True))
    for name, media_type in said.items():
        registries[name].add_manifest("app", body, media_type, "latest")
    order = sorted(said, key=lambda name: name != first)

    async def asked(mirror) -> None:
        for reference in ("latest", digest_of(body)):
            for name in order:
                for method in ("GET", "HEAD"):
                    answer = await mirror.get(path(name, reference), method)
                    assert answer.status == 200
                    assert answer.headers["Content-Type"] == said[name], (name, method, reference)

    async with running(tmp_path, upstreams(registries), tags=tags) as mirror:
        await asked(mirror)
        await asked(mirror)
    for registry in registries.values():
        await registry.stop()
    async with running(tmp_path, upstreams(registries), tags=tags) as mirror:
        await asked(mirror)  # stale, from the records on disk
    for registry in registries.values():
        await registry.start()


async def test_a_repository_has_no_word_on_the_media_type_in_another(tmp_path, registries):
    registries[ONE].add_manifest("app", IMAGE, OCI_MANIFEST, "latest")
    registries[ONE].add_manifest("evil", IMAGE, DOCKER_MANIFEST, "latest")
    async with running(tmp_path, upstreams(registries)) as mirror:
        evil = await mirror.get(f"/v2/{ONE}/evil/manifests/latest")
        assert evil.headers["Content-Type"] == DOCKER_MANIFEST
        for reference in ("latest", digest_of(IMAGE)):
            answer = await mirror.get(path(ONE, reference))
            assert answer.headers["Content-Type"] == OCI_MANIFEST


async def test_what_a_former_version_kept_for_all_is_not_believed(tmp_path, registries):
    """Its index has the media type that the first upstream sent, whichever that was."""
    registries[OTHER].add_manifest("app", IMAGE, OCI_MANIFEST, "latest")
    config = configured(tmp_path, upstreams(registries))
    async with opened_store(config, Metrics(__version__)) as store:
        digest = Digest.parse(digest_of(IMAGE))
        await store.manifests.put(Manifest(digest, OCI_INDEX, IMAGE))
    async with running(tmp_path, upstreams(registries)) as mirror:
        for reference in ("latest", digest_of(IMAGE)):
            for method in ("GET", "HEAD"):
                answer = await mirror.get(path(OTHER, reference), method)
                assert answer.headers["Content-Type"] == OCI_MANIFEST
    assert registries[OTHER].count("manifest", "GET") == 0


async def test_an_unverified_size_is_not_told_to_clients_of_another_upstream(tmp_path, registries):
    data = random_bytes(1 << 20)
    digest = registries[OTHER].add_blob(data)
    registries[ONE].add_blob(data)
    lie = {"Content-Length": str(8 << 20)}
    registries[ONE].faults.append(Fault(times=9, stall=1 << 19, headers=lie))
    async with running(tmp_path, upstreams(registries)) as mirror:
        slow = asyncio.create_task(mirror.get(path(ONE, digest, "blobs")))
        async with limit():
            while not registries[ONE].sent[digest]:
                await asyncio.sleep(0.01)
        head = await mirror.get(path(OTHER, digest, "blobs"), "HEAD")
        assert head.headers["Content-Length"] == str(len(data))
        slow.cancel()
        await asyncio.gather(slow, return_exceptions=True)
