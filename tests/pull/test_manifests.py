"""Manifests and tags as a client sees them."""

import asyncio
import json

import pytest
from aiohttp import web

from mirror.oci.media_types import ACCEPT_MANIFESTS
from tests.fakes import FakeRegistry, Fault, image
from tests.fakes.content import DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST, index
from tests.running import running

pytestmark = pytest.mark.slow

REPO = "library/app"
HUB = "docker.io"


def path(reference: str, repo: str = REPO) -> str:
    return f"/v2/{repo}/manifests/{reference}"


def result(outcome: str) -> str:
    return f'mirror_requests_total{{kind="manifest",result="{outcome}",upstream="docker.io"}}'


@pytest.fixture
def app(upstream: FakeRegistry):
    content = image(b"layer")
    upstream.add_image(REPO, content, "latest")
    return content


async def test_a_tag_is_fetched_once_and_fresh_after_that(mirror, upstream, app):
    for status in ("mirror; fwd=miss; stored", "mirror; hit", "mirror; hit"):
        answer = await mirror.get(path("latest"))
        assert (answer.status, answer.body) == (200, app.manifest)
        assert answer.headers["Cache-Status"] == status
        assert answer.headers["Content-Type"] == OCI_MANIFEST
        assert answer.headers["Docker-Content-Digest"] == app.digest
    assert upstream.count("manifest", "GET") == 1
    assert upstream.count("manifest", "HEAD") == 1


async def test_a_head_that_misses_fetches_the_manifest_once(mirror, upstream, app):
    for _ in range(2):
        answer = await mirror.get(path("latest"), "HEAD")
        assert answer.headers["Docker-Content-Digest"] == app.digest
        assert answer.headers["Content-Length"] == str(len(app.manifest))
        assert answer.body == b""
    assert (await mirror.get(path("latest"))).body == app.manifest
    assert upstream.count("manifest", "GET") == 1
    assert upstream.count("manifest", "HEAD") == 1


async def test_a_tag_that_was_only_headed_can_be_had_offline(tmp_path, upstream, app):
    tags = {"max_age": "0s"}
    async with running(tmp_path, {HUB: upstream.url}, tags=tags) as mirror:
        assert (await mirror.get(path("latest"), "HEAD")).status == 200
    await upstream.stop()
    async with running(tmp_path, {HUB: upstream.url}, tags=tags) as mirror:
        for reference in ("latest", app.digest):
            assert (await mirror.get(path(reference))).body == app.manifest
    await upstream.start()


@pytest.mark.parametrize("status", [429, 500])
async def test_a_head_is_answered_although_the_manifest_cannot_be_fetched(
    mirror, upstream, app, status
):
    upstream.faults.append(Fault(kind="manifest", method="GET", status=status, times=9))
    for _ in range(2):
        answer = await mirror.get(path("latest"), "HEAD")
        assert (answer.status, answer.headers["Docker-Content-Digest"]) == (200, app.digest)
    assert upstream.count("manifest", "HEAD") == 1


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_a_fresh_tag_that_moved_is_asked_for_again_if_its_old_digest_is_gone(
    mirror, upstream, app, method
):
    upstream.faults.append(Fault(kind="manifest", method="GET", status=501))
    assert (await mirror.get(path("latest"), "HEAD")).headers["Docker-Content-Digest"] == app.digest
    del upstream.manifests[REPO, app.digest]
    moved = image(b"moved")
    upstream.add_image(REPO, moved, "latest")
    answer = await mirror.get(path("latest"), method)
    assert (answer.status, answer.headers["Docker-Content-Digest"]) == (200, moved.digest)
    asked = len(upstream.seen)
    for again in ("HEAD", "GET", "GET"):
        answer = await mirror.get(path("latest"), again)
        assert answer.headers["Docker-Content-Digest"] == moved.digest
    assert answer.headers["Cache-Status"] == "mirror; hit"
    assert len(upstream.seen) == asked


async def test_a_head_that_names_a_digest_which_is_nowhere_costs_no_pull(mirror, upstream, app):
    nowhere = {"Docker-Content-Digest": f"sha256:{'0' * 64}"}
    upstream.faults.append(Fault(kind="manifest", method="HEAD", headers=nowhere, times=9))
    for _ in range(2):
        answer = await mirror.get(path("latest"))
        assert (answer.status, answer.body) == (200, app.manifest)
    assert upstream.count("manifest", "GET") == 2, "the digest, then the tag"


async def test_a_tag_that_is_gone_with_its_digest_is_404(mirror, upstream, app):
    upstream.faults.append(Fault(kind="manifest", method="GET", status=501))
    assert (await mirror.get(path("latest"), "HEAD")).status == 200
    upstream.manifests.clear()
    upstream.tags.clear()
    assert (await mirror.get(path("latest"))).status == 404


async def test_cached_content_is_served_to_picky_clients_without_a_question(mirror, upstream, app):
    await mirror.get(path("latest"))
    asked = len(upstream.seen)
    picky = await mirror.get(path("latest"), Accept=OCI_MANIFEST)
    assert (picky.body, picky.headers["Cache-Status"]) == (app.manifest, "mirror; hit")
    for method in ("GET", "HEAD"):
        answer = await mirror.get(path(app.digest), method, Accept=DOCKER_MANIFEST)
        assert (answer.status, answer.headers["Content-Type"]) == (200, OCI_MANIFEST)
        assert answer.headers["Cache-Status"] == "mirror; hit"
    for way in (f"{path(app.digest)}?ns=docker.io:443", f"/v2/docker.io:443/{path('latest')[4:]}"):
        answer = await mirror.get(way)
        assert (answer.body, answer.headers["Cache-Status"]) == (app.manifest, "mirror; hit")
    assert len(upstream.seen) == asked
    assert (await mirror.get(path("latest"), Accept=DOCKER_LIST)).status == 404, "it has no list"


async def test_by_digest_upstream_is_asked_once_and_for_ever(mirror, upstream, app):
    assert (await mirror.get(path(app.digest))).body == app.manifest
    await upstream.stop()
    warm = await mirror.get(path(app.digest))
    await upstream.start()
    assert (warm.body, warm.headers["Cache-Status"]) == (app.manifest, "mirror; hit")
    assert upstream.count("manifest") == 1


async def test_an_old_tag_is_revalidated_by_head_and_fetched_when_it_moved(tmp_path, upstream, app):
    tags = {"max_age": "0s"}
    async with running(tmp_path, {HUB: upstream.url}, tags=tags) as mirror:
        await mirror.get(path("latest"))
        again = await mirror.get(path("latest"))
        assert again.headers["Cache-Status"] == "mirror; fwd=stale; detail=revalidated"
        assert upstream.count("manifest", "GET") == 1
        moved = image(b"another layer")
        upstream.add_image(REPO, moved, "latest")
        assert (await mirror.get(path("latest"))).body == moved.manifest
        figures = await mirror.metrics()
    assert figures[result("revalidated")] == 1
    assert figures[result("miss")] == 2


async def test_a_tag_is_served_stale_with_upstream_gone_also_after_a_restart(
    tmp_path, upstream, app
):
    tags = {"max_age": "0s"}
    async with running(tmp_path, {HUB: upstream.url}, tags=tags) as mirror:
        await mirror.get(path("latest"))
    await upstream.stop()
    async with running(tmp_path, {HUB: upstream.url}, tags=tags) as mirror:
        for method in ("GET", "HEAD"):
            answer = await mirror.get(path("latest"), method)
            assert answer.status == 200
            assert answer.headers["Cache-Status"].startswith("mirror; fwd=stale; detail=")
            assert answer.headers["Docker-Content-Digest"] == app.digest
        assert (await mirror.metrics())[result("stale")] == 2
    await upstream.start()


@pytest.mark.parametrize("status", [500, 503, 429])
async def test_a_tag_is_served_stale_when_upstream_cannot_answer(tmp_path, upstream, app, status):
    tags = {"max_age": "0s"}
    async with running(tmp_path, {HUB: upstream.url}, tags=tags) as mirror:
        await mirror.get(path("latest"))
        upstream.faults.append(Fault(kind="manifest", status=status))
        assert (await mirror.get(path("latest"))).body == app.manifest


async def test_a_tag_that_upstream_deleted_is_gone(tmp_path, upstream, app):
    tags = {"max_age": "0s", "negative_max_age": "0s"}
    async with running(tmp_path, {HUB: upstream.url}, tags=tags) as mirror:
        await mirror.get(path("latest"))
        del upstream.tags[REPO, "latest"]
        assert (await mirror.get(path("latest"))).status == 404
        upstream.faults.append(Fault(kind="manifest", times=9, status=500))
        answer = await mirror.get(path("latest"))
        assert (answer.status, b"when last asked" in answer.body) == (404, True)


async def test_a_missing_tag_is_remembered_as_missing(mirror, upstream):
    for _ in range(3):
        answer = await mirror.get(path("nothing"))
        assert answer.status == 404
        assert json.loads(answer.body)["errors"][0]["code"] == "MANIFEST_UNKNOWN"
    assert (upstream.count("manifest", "HEAD"), upstream.count("manifest", "GET")) == (1, 1)


async def test_one_question_upstream_however_many_ask(mirror, upstream, app):
    answers = await asyncio.gather(*(mirror.get(path("latest")) for _ in range(20)))
    assert all(answer.body == app.manifest for answer in answers)
    assert upstream.count("manifest") == 2, "one HEAD, one GET"


@pytest.mark.parametrize("reference", ["latest", "digest"])
async def test_a_flipped_byte_is_502_counted_and_not_stored(mirror, upstream, app, reference):
    reference = app.digest if reference == "digest" else reference
    upstream.faults.append(Fault(kind="manifest", method="GET", flip=30))
    answer = await mirror.get(path(reference))
    assert answer.status == 502
    assert json.loads(answer.body)["errors"][0]["code"] == "UNAVAILABLE"
    figures = await mirror.metrics()
    assert figures['mirror_fills_total{result="digest_mismatch",upstream="docker.io"}'] == 1
    assert figures["mirror_cache_objects"] == 0
    assert (await mirror.get(path(reference))).body == app.manifest


async def test_a_captive_portal_is_never_stored_or_passed_on(mirror, upstream, app):
    portal = b"<html><body>Please log in to the hotel's network</body></html>"
    upstream.faults.append(
        Fault(
            kind="manifest", times=2, status=200, body=portal, headers={"Content-Type": "text/html"}
        )
    )
    answer = await mirror.get(path("latest"))
    assert answer.status == 502
    assert b"hotel" not in answer.body
    assert (await mirror.metrics())["mirror_cache_objects"] == 0
    assert (await mirror.get(path("latest"))).body == app.manifest


async def test_an_upstream_without_head_or_digest_header_is_asked_by_get(mirror, upstream, app):
    upstream.faults += [
        Fault(kind="manifest", method="HEAD", status=405),
        Fault(kind="manifest", method="GET", headers={"Docker-Content-Digest": None}),
    ]
    answer = await mirror.get(path("latest"))
    assert (answer.status, answer.headers["Docker-Content-Digest"]) == (200, app.digest)


async def test_upstream_gets_our_accept_list_whatever_the_client_sent(mirror, upstream, app):
    await mirror.get(path("latest"), Accept="*/*")
    for seen in upstream.seen:
        assert OCI_MANIFEST in seen.headers["Accept"]
        assert "*" not in seen.headers["Accept"]
        assert seen.headers["Accept-Encoding"] == "identity"
        assert seen.headers["User-Agent"].startswith("mirror/")


async def test_a_picky_client_gets_what_upstream_would_have_given_it(mirror, upstream):
    """As distribution does it, here by hand: an index for some, its first image for others."""
    old = image(b"amd64", media_type=DOCKER_MANIFEST)
    upstream.add_image(REPO, old)
    body = index(old, media_type=DOCKER_LIST)
    upstream.add_manifest(REPO, body, DOCKER_LIST, "latest")
    everything = f"{DOCKER_LIST}, {DOCKER_MANIFEST}, {OCI_INDEX}, {OCI_MANIFEST}"
    assert (await mirror.get(path("latest"), Accept=everything)).body == body
    refused = await mirror.get(path("latest"), Accept=DOCKER_MANIFEST)
    assert refused.status == 404, "this upstream has nothing for a client that takes no list"
    direct = await mirror.get(path(old.digest), Accept=DOCKER_MANIFEST)
    assert direct.body == old.manifest
    assert (await mirror.get(path("latest"), Accept=everything)).status == 200


async def test_two_upstreams_at_once_do_not_mix(tmp_path):
    async with FakeRegistry() as hub, FakeRegistry() as mcr:
        ours, theirs = image(b"hub"), image(b"mcr")
        hub.add_image("library/app", ours, "1")
        mcr.add_image("dotnet/app", theirs, "1")
        upstreams = {HUB: hub.url, "mcr.microsoft.com": {"url": mcr.url, "hosts": ["mcr.corp"]}}
        async with running(tmp_path, upstreams) as mirror:
            assert (await mirror.get(path("1", "app"))).body == ours.manifest
            for way in (
                "/v2/mcr.microsoft.com/dotnet/app/manifests/1",
                "/mcr.microsoft.com/v2/dotnet/app/manifests/1",
                "/v2/dotnet/app/manifests/1?ns=mcr.microsoft.com",
            ):
                assert (await mirror.get(way)).body == theirs.manifest, way
            by_host = await mirror.get("/v2/dotnet/app/manifests/1", Host="mcr.corp")
            assert by_host.body == theirs.manifest
            with_ns = await mirror.get("/v2/dotnet/app/manifests/1?ns=mcr.microsoft.com")
            assert with_ns.headers["OCI-Namespace"] == "mcr.microsoft.com"
            for listing in ("tags/list", f"referrers/{theirs.digest}"):
                listed = await mirror.get(f"/v2/dotnet/app/{listing}?ns=mcr.microsoft.com")
                assert (listed.status, listed.headers["OCI-Namespace"]) == (
                    200,
                    "mcr.microsoft.com",
                )
            named = {"OCI_Namespace": "mcr.microsoft.com"}
            by_field = await mirror.get("/v2/dotnet/app/manifests/1", **named)
            assert by_field.body == theirs.manifest
            assert by_field.headers["OCI-Namespace"] == "mcr.microsoft.com"
            both = await mirror.get("/v2/app/manifests/1?ns=docker.io", **named)
            assert both.body == ours.manifest, "the query comes first"
        assert all("ns=" not in seen.path for seen in mcr.seen)
        assert all("OCI-Namespace" not in seen.headers for seen in mcr.seen)
        assert mcr.count("manifest", "GET") == 1


async def test_a_registry_that_is_not_configured_is_never_contacted(mirror, upstream):
    for way in (
        "/v2/registry.example.com/app/manifests/1",
        "/v2/app/manifests/1?ns=registry.example.com",
        "/registry.example.com/v2/app/manifests/1",
    ):
        answer = await mirror.get(way)
        error = json.loads(answer.body)["errors"][0]
        assert (answer.status, error["code"]) == (403, "DENIED")
        assert '[upstreams."registry.example.com"]' in error["message"]
    assert upstream.seen == []


async def test_tags_are_listed_page_by_page_through_the_mirror(mirror, upstream, app):
    for number in range(5):
        upstream.tags[REPO, f"v{number}"] = app.digest
    where, names = f"/v2/{REPO}/tags/list?n=2", []
    while where:
        answer = await mirror.get(where)
        names += json.loads(answer.body)["tags"]
        link = answer.headers.get("Link", "")
        where = link.partition(">")[0].removeprefix("<")
    assert names == ["latest", "v0", "v1", "v2", "v3", "v4"]
    asked = upstream.count("tags")
    await mirror.get(f"/v2/{REPO}/tags/list?n=2")
    assert upstream.count("tags") == asked


async def test_429_reaches_the_client_with_its_retry_after_and_upstream_is_left_alone(
    mirror, upstream, app
):
    upstream.faults.append(Fault(kind="manifest", status=429, headers={"Retry-After": "17"}))
    for _ in range(3):
        answer = await mirror.get(path("latest"))
        assert answer.status == 429
        assert 0 < int(answer.headers["Retry-After"]) <= 17
        assert json.loads(answer.body)["errors"][0]["code"] == "TOOMANYREQUESTS"
    assert upstream.count("manifest") == 1


async def test_a_rate_limit_is_shown_as_a_metric(mirror, upstream, app):
    limits = {"ratelimit-limit": "100;w=21600", "ratelimit-remaining": "42;w=21600"}
    upstream.faults.append(Fault(kind="manifest", method="HEAD", headers=limits))
    await mirror.get(path("latest"))
    figures = await mirror.metrics()
    assert figures['mirror_upstream_ratelimit_limit{upstream="docker.io"}'] == 100
    assert figures['mirror_upstream_ratelimit_remaining{upstream="docker.io"}'] == 42


async def test_100_accept_fields_are_as_good_as_none(mirror, upstream):
    """Only one that can be read makes a client picky; the rest is no reason to ask upstream."""
    upstream.add_image("library/app", image(b"layer"), "1")
    patterns = ",".join(f"a/{number}" for number in range(1000))
    for _ in range(2):
        async with mirror.session.get(
            f"{mirror.url}/v2/library/app/manifests/1",
            headers=[("Accept", f"{DOCKER_MANIFEST},{patterns}")] * 100,
        ) as answer:
            assert answer.status == 200
    assert {seen.headers["Accept"] for seen in upstream.seen} == {ACCEPT_MANIFESTS}


#: Watchtower's: without the type of an OCI image.
WATCHTOWER = f"{DOCKER_MANIFEST}, {DOCKER_LIST}, {OCI_INDEX}"


@pytest.mark.parametrize("indexed", [False, True], ids=["image", "index"])
async def test_what_a_picky_client_has_asked_for_is_fresh_and_there_for_all_offline(
    tmp_path, upstream, app, indexed
):
    """Many registries send what they have, of whatever type, as Docker Hub does."""
    body = index(app) if indexed else app.manifest
    kind = OCI_INDEX if indexed else OCI_MANIFEST
    upstream.guard = lambda *_: web.Response(body=body, content_type=kind)
    async with running(tmp_path, {HUB: upstream.url}, tags={"max_age": "1h"}) as mirror:
        for _ in range(3):
            answer = await mirror.get(path("latest"), "HEAD", Accept=WATCHTOWER)
            assert (answer.status, answer.headers["Content-Type"]) == (200, kind)
        assert upstream.count("manifest") == 2, "a HEAD for the tag, a GET of its manifest"
        assert (await mirror.get(path("latest"))).body == body
        assert upstream.count("manifest") == 2
    await upstream.stop()
    async with running(tmp_path, {HUB: upstream.url}) as mirror:
        for accept in ("*/*", WATCHTOWER):
            answer = await mirror.get(path("latest"), Accept=accept)
            assert (answer.status, answer.body) == (200, body)
    await upstream.start()
