"""What is in a registry besides images of the usual kind."""

import asyncio
import json
import shutil
from dataclasses import replace
from urllib.parse import quote

import pytest
from aiohttp import web

from tests.fakes import FakeRegistry, Fault, random_bytes
from tests.fakes.content import OCI_INDEX, OCI_MANIFEST, digest_of, image, index
from tests.running import running
from tests.waiting import limit

pytestmark = [pytest.mark.slow]

REPO = "library/app"
ARTIFACT = "application/vnd.oci.artifact.manifest.v1+json"
SIGNATURE = "application/vnd.dev.cosign.artifact.sig.v1+json"
SBOM = "application/spdx+json"
HELM = "application/vnd.cncf.helm.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
FOREIGN = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
SCHEMA1 = "application/vnd.docker.distribution.manifest.v1+prettyjws"


def descriptor(data: bytes, media_type: str, **fields: object) -> dict[str, object]:
    return {"mediaType": media_type, "digest": digest_of(data), "size": len(data), **fields}


def manifest(config: dict[str, object], *layers: dict[str, object], **fields: object) -> bytes:
    """An OCI manifest of any purpose."""
    body = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": layers}
    return json.dumps(body | fields).encode()


def attached(subject: bytes, kind: str, content: bytes = b"{}") -> bytes:
    """A manifest of one blob that refers to another manifest."""
    return manifest(
        descriptor(b"{}", "application/vnd.oci.empty.v1+json"),
        descriptor(content, kind),
        artifactType=kind,
        subject=descriptor(subject, OCI_MANIFEST),
    )


def added(upstream: FakeRegistry, body: bytes, media_type: str, *blobs: bytes) -> str:
    """Have upstream hold a manifest under the tag "latest", and its blobs."""
    for blob in blobs:
        upstream.add_blob(blob)
    return upstream.add_manifest(REPO, body, media_type, "latest")


def path(reference: str) -> str:
    return f"/v2/{REPO}/manifests/{reference}"


def kinds() -> dict[str, tuple[bytes, str, list[bytes]]]:
    """Manifests of all kinds, their media types and blobs."""
    data = random_bytes(100_000)
    plain = image(data)
    chart = manifest(
        descriptor(b'{"name":"chart"}', HELM),
        descriptor(data, "application/vnd.cncf.helm.chart.content.v1.tar+gzip"),
    )
    lazily = {"containerd.io/snapshot/stargz/toc.digest": digest_of(b"toc")}
    layers = [
        descriptor(data, f"{LAYER}+zstd"),
        descriptor(data, f"{LAYER}+gzip", annotations=lazily),
    ]
    zstd = manifest(descriptor(b"{}", "application/vnd.oci.image.config.v1+json"), *layers)
    nested = {"schemaVersion": 2, "manifests": [descriptor(index(plain), OCI_INDEX)]}
    provenance = {
        **descriptor(plain.manifest, OCI_MANIFEST),
        "platform": {"architecture": "unknown", "os": "unknown"},
        "annotations": {"vnd.docker.reference.type": "attestation-manifest"},
    }
    attested = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [provenance]}
    drafted = {"mediaType": ARTIFACT, "blobs": [descriptor(data, SBOM)], "artifactType": SBOM}
    return {
        "chart": (chart, OCI_MANIFEST, [b'{"name":"chart"}', data]),
        "zstd and eStargz": (zstd, OCI_MANIFEST, [b"{}", data]),
        "index of indexes": (json.dumps(nested).encode(), OCI_INDEX, []),
        "attestations": (json.dumps(attested).encode(), OCI_INDEX, []),
        "artifact manifest": (json.dumps(drafted).encode(), ARTIFACT, [data]),
        "signature": (attached(plain.manifest, SIGNATURE, data), OCI_MANIFEST, [b"{}", data]),
    }


@pytest.mark.parametrize("kind", kinds())
async def test_every_kind_comes_as_it_is_by_tag_and_digest_also_offline(mirror, upstream, kind):
    body, media_type, blobs = kinds()[kind]
    digest = added(upstream, body, media_type, *blobs)
    accepted = {"Accept": f"{media_type}, */*"}
    for reference in ("latest", digest):
        head = await mirror.get(path(reference), "HEAD", **accepted)
        assert (head.status, head.headers["Content-Length"]) == (200, str(len(body)))
        answer = await mirror.get(path(reference), **accepted)
        assert (answer.body, answer.headers["Content-Type"]) == (body, media_type)
        assert answer.headers["Docker-Content-Digest"] == digest
    for blob in blobs:
        assert (await mirror.get(f"/v2/{REPO}/blobs/{digest_of(blob)}")).body == blob
    await upstream.stop()
    for reference in ("latest", digest):
        assert (await mirror.get(path(reference), **accepted)).body == body
    for blob in blobs:
        assert (await mirror.get(f"/v2/{REPO}/blobs/{digest_of(blob)}")).body == blob
    await upstream.start()


async def test_what_refers_to_an_image_is_listed_by_kind(mirror, upstream):
    app = image(b"layer")
    upstream.add_image(REPO, app, "latest")
    signature = upstream.add_manifest(REPO, attached(app.manifest, SIGNATURE), OCI_MANIFEST)
    sbom = upstream.add_manifest(REPO, attached(app.manifest, SBOM), OCI_MANIFEST)
    where = f"/v2/{REPO}/referrers/{app.digest}"
    for query, found, applied in [
        ("", {signature, sbom}, None),
        (f"?artifactType={SBOM.replace('+', '%2B')}", {sbom}, "artifactType"),
        ("?artifactType=application/none", set(), "artifactType"),
    ]:
        answer = await mirror.get(where + query)
        assert answer.status == 200
        assert answer.headers["Content-Type"] == OCI_INDEX
        assert answer.headers.get("OCI-Filters-Applied") == applied
        assert {entry["digest"] for entry in json.loads(answer.body)["manifests"]} == found
    nothing = await mirror.get(f"/v2/{REPO}/referrers/{sbom}")
    assert (nothing.status, json.loads(nothing.body)["manifests"]) == (200, [])


async def test_a_registry_without_the_referrers_api_sends_clients_to_the_tag(mirror, upstream):
    upstream.referrers_api = False
    app = image(b"layer")
    upstream.add_image(REPO, app, "latest")
    signature = attached(app.manifest, SIGNATURE)
    upstream.add_manifest(REPO, signature, OCI_MANIFEST)
    listed = {"schemaVersion": 2, "manifests": [descriptor(signature, OCI_MANIFEST)]}
    fallback, cosign = app.digest.replace(":", "-"), app.digest.replace(":", "-") + ".sig"
    upstream.add_manifest(REPO, json.dumps(listed).encode(), OCI_INDEX, fallback)
    upstream.add_manifest(REPO, signature, OCI_MANIFEST, cosign)
    for _ in range(2):
        refused = await mirror.get(f"/v2/{REPO}/referrers/{app.digest}")
        assert refused.status == 404
        assert json.loads(refused.body)["errors"][0]["code"] == "UNSUPPORTED"
    assert upstream.count("referrers") == 1
    assert json.loads((await mirror.get(path(fallback))).body) == listed
    assert (await mirror.get(path(cosign))).body == signature
    assert (await mirror.get(path(f"{fallback}.att"))).status == 404, "nothing is attached"


async def test_listings_are_served_as_last_known_with_upstream_gone_also_after_a_restart(
    tmp_path, upstream
):
    app = image(b"layer")
    upstream.add_image(REPO, app, "latest", "1")
    upstream.add_manifest(REPO, attached(app.manifest, SIGNATURE), OCI_MANIFEST)
    tags, referrers = f"/v2/{REPO}/tags/list?n=10", f"/v2/{REPO}/referrers/{app.digest}"
    other = f"/v2/{REPO}/tags/list?n=1"
    async with running(tmp_path, {"docker.io": upstream.url}) as mirror:
        first = [(await mirror.get(where)).body for where in (tags, referrers)]
    await upstream.stop()
    async with running(tmp_path, {"docker.io": upstream.url}) as mirror:
        answers = [await mirror.get(where) for where in (tags, referrers)]
        assert [answer.body for answer in answers] == first
        for answer in answers:
            assert answer.headers["Cache-Status"].startswith("mirror; fwd=stale; detail=")
        assert answers[1].headers["Content-Type"] == OCI_INDEX
        assert (await mirror.get(other)).status == 502, "nobody has asked for that page yet"
        for query in ("", "?n=2", "?n=1000", "?ns=docker.io"):  # of other clients
            whole = await mirror.get(f"/v2/{REPO}/tags/list{query}")
            assert (whole.status, whole.body) == (200, first[0]), query
        for query in ("?n=0", "?n=10&last=1", "?last=1"):
            assert (await mirror.get(f"/v2/{REPO}/tags/list{query}")).status == 502, query
    await upstream.start()
    too_old = {"max_age": "1ms", "stale_if_error": "1ms"}
    async with running(tmp_path, {"docker.io": upstream.url}, tags=too_old) as mirror:
        assert (await mirror.get(tags)).status == 200
        await asyncio.sleep(0.01)
        upstream.faults.append(Fault(kind="tags", status=500, times=9))
        assert (await mirror.get(tags)).status == 502


@pytest.mark.parametrize(
    ("body", "status"), [(b'{"name": "library/app"}', 200), (b'{"tags": 5}', 502)]
)
async def test_a_list_without_tags_is_an_empty_one_also_offline(tmp_path, upstream, body, status):
    upstream.faults.append(Fault(kind="tags", status=200, body=body, times=9))
    tags = f"/v2/{REPO}/tags/list"
    async with running(tmp_path, {"docker.io": upstream.url}, tags=SHORT) as mirror:
        assert (await mirror.get(tags)).body == body
        upstream.faults[:] = [Fault(kind="tags", status=502, times=9)]
        answer = await mirror.get(f"{tags}?n=2")
        assert answer.status == status


NO_API = {
    **{
        str(status): Fault(kind="referrers", status=status)
        for status in (204, 400, 404, 405, 406, 410, 415, 422, 501)
    },
    "a page": Fault(kind="referrers", status=200, body=b"<html></html>"),
    "a typed page": Fault(
        kind="referrers", status=200, body=b"{}", headers={"Content-Type": "text/html"}
    ),
    "nothing": Fault(kind="referrers", status=200),
    "an error with 200": Fault(kind="referrers", status=200, body=b'{"errors": []}'),
}


@pytest.mark.parametrize("answer", NO_API)
async def test_whatever_says_that_there_is_no_referrers_api_sends_clients_to_the_tag(
    mirror, upstream, answer
):
    upstream.faults.append(replace(NO_API[answer], times=9))
    where = f"/v2/{REPO}/referrers/sha256:{'1' * 64}"
    for _ in range(2):
        refused = await mirror.get(where)
        error = json.loads(refused.body)["errors"][0]
        assert (refused.status, error["code"]) == (404, "UNSUPPORTED")
        assert "has no referrers API" in error["message"]
    assert upstream.count("referrers") == 1


@pytest.mark.parametrize("target", ["page", "forbidden page", "loop", "no http"])
async def test_a_redirect_of_referrers_to_a_page_says_that_there_is_no_such_api(
    tmp_path, upstream, target
):
    async with FakeRegistry() as login:
        login.guard = lambda *_: web.Response(
            text="<html></html>",
            content_type="text/html",
            status=403 if target == "forbidden page" else 200,
        )
        where = "ftp://registry" if target == "no http" else f"{login.url}/login"
        upstream.faults.append(Fault(kind="referrers", redirect=where, times=9))
        if target == "loop":
            login.guard = lambda *_: web.Response(status=302, headers={"Location": "/login"})
        table = {"url": upstream.url, "private_redirects": True}
        async with running(tmp_path, {"docker.io": table}) as mirror:
            refused = await mirror.get(f"/v2/{REPO}/referrers/sha256:{'1' * 64}")
    assert (refused.status, json.loads(refused.body)["errors"][0]["code"]) == (404, "UNSUPPORTED")


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        (Fault(kind="referrers", status=401), 401),
        (Fault(kind="referrers", status=403), 403),
        (Fault(kind="referrers", status=429), 429),
        (Fault(kind="referrers", status=500), 502),
        (Fault(kind="referrers", status=200, body=b'{"manifests": ['), 502),
    ],
    ids=["401", "403", "429", "500", "half of an index"],
)
async def test_what_refuses_or_fails_is_no_registry_without_referrers(
    mirror, upstream, fault, status
):
    upstream.faults.append(replace(fault, times=9))
    answer = await mirror.get(f"/v2/{REPO}/referrers/sha256:{'1' * 64}")
    assert answer.status == status


async def test_listings_come_from_the_registry_itself_and_from_its_mirrors_at_last(
    tmp_path, upstream
):
    app = image(b"layer")
    upstream.add_image(REPO, app, "1", "2")
    signature = upstream.add_manifest(REPO, attached(app.manifest, SIGNATURE), OCI_MANIFEST)
    paths = [f"/v2/{REPO}/referrers/{app.digest}", f"/v2/{REPO}/tags/list"]
    async with FakeRegistry() as partial:
        partial.add_image(REPO, app, "1")
        table = {"url": upstream.url, "mirrors": [partial.url]}
        async with running(tmp_path, {"docker.io": table}, tags=SHORT) as mirror:
            whole = [(await mirror.get(where)).body for where in paths]
            assert signature in whole[0].decode()
            assert json.loads(whole[1])["tags"] == ["1", "2"]
            assert partial.seen == []
            await upstream.stop()
            assert [(await mirror.get(where)).body for where in paths] == whole, "the last known"
            paged = f"{paths[1]}?n=5&last=0"
            assert json.loads((await mirror.get(paged)).body)["tags"] == ["1"]
            await upstream.start()
            async with limit():
                while json.loads((await mirror.get(paged)).body)["tags"] != ["1", "2"]:
                    await asyncio.sleep(0.05)  # the breaker looks by itself
        upstream.guard = lambda *_: web.Response(status=403)
        async with running(tmp_path / "new", {"docker.io": table}) as mirror:
            for _ in range(2):
                assert json.loads((await mirror.get(paged)).body)["tags"] == ["1"]
        upstream.guard = lambda *_: web.Response(status=404)
        async with running(tmp_path / "newer", {"docker.io": table}) as mirror:
            assert (await mirror.get(paths[0])).status == 404, "the mirror may lack signatures"


#: What Docker 29.1 asks for an attestation manifest at every pull, and other content that may lack.
MISSING = [
    f"/v2/{REPO}/referrers/sha256:{'1' * 64}",
    f"/v2/{REPO}/manifests/sha256-{'1' * 64}",
    f"/v2/{REPO}/manifests/sha256:{'1' * 64}",
    f"/v2/{REPO}/blobs/sha256:{'1' * 64}",
    "/v2/library/nothing/tags/list",
]
SHORT = {"max_age": "0s", "negative_max_age": "0s"}


@pytest.mark.long
@pytest.mark.parametrize("status", [0, 503, 429])
async def test_what_upstream_lacked_stays_missing_while_it_cannot_answer_also_after_a_restart(
    tmp_path, upstream, status
):
    upstream.referrers_api = False
    async with running(tmp_path, {"docker.io": upstream.url}, tags=SHORT) as mirror:
        for where in MISSING:
            assert (await mirror.get(where)).status == 404
    if status:
        upstream.faults.append(Fault(kind="", status=status, times=99))
    else:
        await upstream.stop()
    async with running(tmp_path, {"docker.io": upstream.url}, tags=SHORT) as mirror:
        for where in MISSING:
            answer = await mirror.get(where)
            assert (answer.status, where) == (404, where)
            assert "when last asked" in json.loads(answer.body)["errors"][0]["message"]
            never = await mirror.get(where.replace("1" * 64, "2" * 64).replace("nothing", "more"))
            assert never.status in {502, 429}, "upstream was never asked for this"
        filtered = await mirror.get(f"{MISSING[0]}?artifactType={SBOM}")
        assert filtered.status == 404
        picky = await mirror.get(MISSING[1], Accept=OCI_INDEX)
        assert picky.status == 404
    if not status:
        await upstream.start()


async def test_no_referrers_api_for_one_kind_is_none_for_all_kinds(tmp_path, upstream):
    """notation asks for signatures, Docker for attestations, oras for everything."""
    upstream.referrers_api = False
    where, other = (
        f"/v2/{REPO}/referrers/sha256:{'1' * 64}",
        f"/v2/{REPO}/referrers/sha256:{'2' * 64}",
    )
    async with running(tmp_path, {"docker.io": upstream.url}, tags=SHORT) as mirror:
        assert (await mirror.get(f"{where}?artifactType={SIGNATURE}")).status == 404
        upstream.referrers_api = True
        assert (await mirror.get(other)).status == 200
        upstream.faults.append(Fault(kind="referrers", status=400))
        assert (await mirror.get(f"{other}?artifactType=no.type")).status == 404
    await upstream.stop()
    async with running(tmp_path, {"docker.io": upstream.url}, tags=SHORT) as mirror:
        for query in ("", f"?artifactType={SBOM}", f"?artifactType={SIGNATURE}"):
            assert (await mirror.get(where + query)).status == 404
        assert (await mirror.get(other)).status == 200, "a refused filter is no word on the list"
    await upstream.start()


async def test_a_404_of_long_ago_does_not_count_while_upstream_cannot_answer(tmp_path, upstream):
    tags = {**SHORT, "stale_if_error": "1ms"}
    async with running(tmp_path, {"docker.io": upstream.url}, tags=tags) as mirror:
        assert (await mirror.get(path("latest"))).status == 404
        await asyncio.sleep(0.01)
        upstream.faults.append(Fault(kind="manifest", times=9, status=500))
        assert (await mirror.get(path("latest"))).status == 502


async def test_what_upstream_has_again_is_not_missing(tmp_path, upstream):
    upstream.referrers_api = False
    app = image(b"layer")
    where = [
        path(app.digest.replace(":", "-")),
        path(app.digest),
        f"/v2/{REPO}/blobs/{app.digests[1]}",
        f"/v2/{REPO}/referrers/{app.digest}",
        f"/v2/{REPO}/tags/list",
    ]
    async with running(tmp_path / "cache", {"docker.io": upstream.url}, tags=SHORT) as mirror:
        assert [(await mirror.get(each)).status for each in where] == [404] * 5
        upstream.referrers_api = True
        upstream.add_image(REPO, app, app.digest.replace(":", "-"))
        assert [(await mirror.get(each)).status for each in where] == [200] * 5
    for kind in ("blobs", "manifests"):
        shutil.rmtree(tmp_path / "cache" / kind)
    upstream.faults.append(Fault(kind="", status=500, times=99))
    async with running(tmp_path / "cache", {"docker.io": upstream.url}, tags=SHORT) as mirror:
        answers = [(await mirror.get(each)).status for each in where]
        assert answers == [502, 502, 502, 200, 200], "only the listings are still known"


async def test_a_kind_that_head_does_not_tell_is_looked_up_in_the_manifest(mirror, upstream):
    app = image(b"layer")
    digest = added(upstream, app.manifest, "application/json")
    for method in ("HEAD", "GET", "HEAD"):
        answer = await mirror.get(path("latest"), method)
        assert (answer.status, answer.headers["Content-Type"]) == (200, OCI_MANIFEST)
        assert answer.headers["Docker-Content-Digest"] == digest
    assert upstream.count("manifest", "GET") == 1


async def test_a_foreign_layer_is_what_its_registry_makes_of_it(mirror, upstream):
    """Windows: dockerd asks the registry first and goes to `urls` after a 404."""
    inside, outside = random_bytes(1000, 1), random_bytes(1000, 2)
    urls = {"urls": ["https://content.example.com/layer"]}
    layers = [descriptor(layer, FOREIGN, **urls) for layer in (inside, outside)]
    body = manifest(descriptor(b"{}", "application/vnd.oci.image.config.v1+json"), *layers)
    added(upstream, body, OCI_MANIFEST, b"{}", inside)
    assert (await mirror.get(path("latest"))).body == body
    assert (await mirror.get(f"/v2/{REPO}/blobs/{digest_of(inside)}")).body == inside
    warm = await mirror.get(f"/v2/{REPO}/blobs/{digest_of(inside)}")
    assert warm.headers["Cache-Status"] == "mirror; hit"
    for method in ("HEAD", "GET"):
        refused = await mirror.get(f"/v2/{REPO}/blobs/{digest_of(outside)}", method)
        assert refused.status == 404
    assert json.loads(refused.body)["errors"][0]["code"] == "BLOB_UNKNOWN"


@pytest.mark.parametrize("media_type", [SCHEMA1, "application/json"])
async def test_schema_1_is_refused_in_plain_words(mirror, upstream, media_type):
    old = {"schemaVersion": 1, "name": "app", "tag": "latest", "fsLayers": [], "history": []}
    added(upstream, json.dumps(old).encode(), media_type)
    answer = await mirror.get(path("latest"), Accept="*/*")
    error = json.loads(answer.body)["errors"][0]
    assert (answer.status, error["code"]) == (404, "MANIFEST_UNKNOWN")
    assert "schema 1" in error["message"]
    assert "push the image again" in error["message"]
    assert (await mirror.get(path("latest"), "HEAD", Accept="*/*")).status == 404
    assert (await mirror.metrics())["mirror_cache_objects"] == 0


@pytest.mark.parametrize("prefix", ["", "/docker.io"])
@pytest.mark.parametrize("namespace", ["", "docker.io"])
async def test_the_next_page_of_a_listing_is_where_the_client_asked(
    mirror, upstream, prefix, namespace
):
    for number in range(5):
        upstream.tags[REPO, f"v{number}"] = "sha256:" + "0" * 64
    within = f"/v2{prefix}/{REPO}/tags/list" if not namespace else f"{prefix}/v2/{REPO}/tags/list"
    where, names = f"{within}?n=2" + (f"&ns={namespace}" if namespace else ""), []
    while where:
        answer = await mirror.get(where)
        names += json.loads(answer.body)["tags"]
        assert answer.headers["Content-Type"].startswith("application/json")
        link = answer.headers.get("Link", "")
        assert not link or link.startswith(f"<{within}?")
        assert not link or not namespace or f"ns={namespace}" in link
        where = link.partition(">")[0].removeprefix("<")
    assert names == ["v0", "v1", "v2", "v3", "v4"]
    assert not any("ns=" in seen.path for seen in upstream.seen)
    last = await mirror.get(f"{within}?n=2&last=v2" + (f"&ns={namespace}" if namespace else ""))
    assert json.loads(last.body)["tags"] == ["v3", "v4"]


class Opaque(FakeRegistry):
    """Turns pages by tokens of its own, as Quay does."""

    async def _tags(self, request: web.BaseRequest, repo: str, *_: object) -> web.StreamResponse:
        pages = {"": ("a", "x+y/z="), "x+y/z=": ("b", "")}
        tag, following = pages[request.rel_url.query.get("next_page", "")]
        link = {"Link": f'</v2/{repo}/tags/list?next_page={quote(following)}>; rel="next"'}
        return web.json_response({"name": repo, "tags": [tag]}, headers=link if following else {})


async def test_pages_are_turned_by_whatever_key_the_registry_gives(tmp_path):
    async with Opaque() as upstream, running(tmp_path, {"docker.io": upstream.url}) as mirror:
        where, names = f"/v2/{REPO}/tags/list?ns=docker.io", list[str]()
        while where and len(names) < 5:
            answer = await mirror.get(where)
            names += json.loads(answer.body)["tags"]
            where = answer.headers.get("Link", "").partition(">")[0].removeprefix("<")
        assert names == ["a", "b"]
        too_long = await mirror.get(f"/v2/{REPO}/tags/list?next_page={'x' * 5000}")
        assert too_long.status == 400


NEXT = f"/v2/{REPO}/tags/list?n=1&last=v0"


@pytest.mark.parametrize(
    ("link", "following"),
    [
        (f'<{NEXT}>; rel="next"', "n=1&last=v0"),
        (f"<{NEXT}>; rel=next", "n=1&last=v0"),
        (f'<{NEXT}>;REL="Next prefetch"', "n=1&last=v0"),
        (f"<{NEXT}>", "n=1&last=v0"),
        (f'{NEXT}; rel="next"', "n=1&last=v0"),
        (f'<http://internal.test:8080{NEXT}#x>; title="a, <b>; c"; rel="next"', "n=1&last=v0"),
        (f'<{NEXT}&first>; rel="first", <{NEXT}>; rel="next"', "n=1&last=v0"),
        ('<?last=a%2Fb+c%3D&d="e f">; rel="next"', 'last=a%2Fb+c%3D&d="e%20f"'),
        (f'<{NEXT}>; rel="prev"', None),
        ('<>; rel="next"', None),
        ("nonsense", None),
    ],
)
async def test_the_next_page_is_found_however_the_link_is_written(
    mirror, upstream, link, following
):
    """Clients end a list where they find no link, and take the first pages for all."""
    body = {"name": REPO, "tags": ["v0"]}
    upstream.guard = lambda request, path: web.json_response(body, headers={"Link": link})
    where = f"/v2/{REPO}/tags/list"
    answer = await mirror.get(f"{where}?n=1")
    assert answer.status == 200
    expected = None if following is None else f'<{where}?{following}>; rel="next"'
    assert answer.headers.get("Link") == expected


@pytest.mark.parametrize("tags", [{"tags": None}, {"tags": []}, {}])
async def test_a_repository_without_tags_has_an_empty_list(mirror, upstream, tags):
    """Go leaves an empty field out, if it is told so."""
    upstream.guard = lambda request, path: web.json_response({"name": REPO, **tags})
    answer = await mirror.get(f"/v2/{REPO}/tags/list")
    assert (answer.status, json.loads(answer.body)) == (200, {"name": REPO, **tags})


@pytest.mark.parametrize("count", ["-1", "x", "1e3", "\u0661"])
async def test_a_page_of_no_number_is_refused_without_upstream(mirror, upstream, count):
    answer = await mirror.get(f"/v2/{REPO}/tags/list?n={quote(count)}")
    assert (answer.status, json.loads(answer.body)["errors"][0]["code"]) == (400, "UNSUPPORTED")
    assert upstream.seen == []


LARGE = json.dumps({"name": REPO, "tags": [f"{number:0100}" for number in range(170_000)]}).encode()


class Endless(FakeRegistry):
    """Lists more tags than fit into 16 MiB; ``size`` says whether it states their size."""

    size = True

    async def _tags(self, request: web.BaseRequest, *_: object) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Link": '</v2/x/tags/list?last=z>; rel="next"'})
        if self.size:
            response.content_length = len(LARGE)
        else:
            response.enable_chunked_encoding()
        await response.prepare(request)
        if request.method == "GET":
            await response.write(LARGE)
        await response.write_eof()
        return response


@pytest.mark.parametrize("size", [True, False])
async def test_a_list_of_tags_over_16_mib_passes_through(tmp_path, size):
    where = f"/v2/{REPO}/tags/list"
    async with Endless() as upstream:
        upstream.size = size
        async with running(tmp_path, {"docker.io": upstream.url}) as mirror:
            answers = await asyncio.gather(*(mirror.get(where) for _ in range(3)))
            for answer in (*answers, await mirror.get(where)):
                assert (answer.status, answer.body == LARGE) == (200, True)
                assert answer.headers["Cache-Status"] == "mirror; fwd=miss"
                assert answer.headers["Link"] == f'<{where}?last=z>; rel="next"'
                assert ("Content-Length" in answer.headers) is size
            head = await mirror.get(where, "HEAD")
            assert (head.status, head.body) == (200, b"")
            upstream.faults.append(Fault(kind="tags", status=500, times=99))
            assert (await mirror.get(where)).status == 502
            sample = 'mirror_upstream_bytes_total{kind="tags",upstream="docker.io"}'
            assert (await mirror.metrics())[sample] >= 4 * len(LARGE)


async def test_head_of_a_long_list_has_no_body(mirror, upstream):
    upstream.tags.update({(REPO, f"{number:0100}"): "sha256:" + "0" * 64 for number in range(1000)})
    for _ in range(2):
        head = await mirror.get(f"/v2/{REPO}/tags/list", "HEAD")
        assert (head.status, head.body, int(head.headers["Content-Length"]) > 100_000) == (
            200,
            b"",
            True,
        )
