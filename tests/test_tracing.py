"""Spans, as a real collector is sent them."""

import asyncio
import subprocess
import sys
import time

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from tests.fakes import FakeRegistry, Fault, image, random_bytes
from tests.fakes.collector import Collector
from tests.peers.process import free_port
from tests.running import eventually, running
from tests.waiting import LIMIT_SECONDS, until

pytestmark = [pytest.mark.slow]


REPO = "library/app"
HUB = "docker.io"
MIB = 1 << 20
APP = image(b"layer")
TAG = f"/v2/{REPO}/manifests/1"
BLOB = f"/v2/{REPO}/blobs/"
GET_BLOB = "GET /v2/{name}/blobs/{digest}"
GET_MANIFEST = "GET /v2/{name}/manifests/{reference}"
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"


@pytest.fixture
async def collector():
    async with Collector() as collecting:
        yield collecting


@pytest.fixture
def traced(tmp_path, upstream: FakeRegistry, collector: Collector):
    def run(table=None, **tracing):
        wanted = {"endpoint": collector.endpoint, **tracing}
        return running(tmp_path / "cache", {HUB: table or upstream.url}, tracing=wanted)

    return run


async def test_a_miss_is_a_tree_from_the_client_to_upstream(traced, upstream, collector):
    digest = upstream.add_blob(random_bytes(MIB))
    async with traced(service="office") as mirror:
        await mirror.get(BLOB + digest)
    request = collector.one(GET_BLOB)
    assert (request.kind, request.parent, request.failed) == ("server", b"", False)
    assert (
        request.attributes.items()
        >= {
            "http.request.method": "GET",
            "http.response.status_code": 200,
            "http.response.body.size": MIB,
            "url.path": BLOB + digest,
            "client.address": "127.0.0.1",
            "mirror.upstream": HUB,
            "mirror.repository": REPO,
            "mirror.result": "miss",
        }.items()
    )
    (fill,) = collector.below(request)
    assert (fill.name, fill.kind) == ("fill", "internal")
    assert fill.attributes["mirror.result"] == "stored"
    assert fill.attributes["mirror.bytes"] == MIB
    (asked,) = collector.below(fill)
    assert (asked.name, asked.kind) == ("GET", "client")
    assert asked.attributes["url.full"] == f"{upstream.url}{BLOB}{digest}"
    assert asked.attributes["http.response.status_code"] == 200
    assert {span.trace for span in collector.spans} == {request.trace}
    assert collector.resource["service.name"] == "office"


async def test_a_histogram_names_a_trace_that_is_collected(traced, upstream, collector):
    digest = upstream.add_blob(random_bytes(MIB))
    async with traced() as mirror:
        await mirror.get(BLOB + digest, traceparent=TRACEPARENT)
        answer = await mirror.get("/metrics", Accept="application/openmetrics-text")
        await mirror.get(BLOB + digest, traceparent=TRACEPARENT.replace("-01", "-00"))
        again = await mirror.get("/metrics", Accept="application/openmetrics-text")
    for body in (answer.body, again.body):
        assert exemplars(body.decode()) == {
            ("mirror_request_seconds_bucket", "miss", TRACE),
            ("mirror_transfer_seconds_bucket", "miss", TRACE),
            ("mirror_upstream_request_seconds_bucket", None, TRACE),
        }


def exemplars(text: str) -> set[tuple[str, str | None, str]]:
    return {
        (sample.name, sample.labels.get("result"), sample.exemplar.labels["trace_id"])
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.exemplar is not None
    }


async def test_a_tag_is_a_flight_and_a_hit_is_nothing_but_itself(traced, upstream, collector):
    upstream.add_image(REPO, APP, "1")
    async with traced() as mirror:
        for _ in range(3):
            await mirror.get(TAG, traceparent=TRACEPARENT)
    miss = collector.one(GET_MANIFEST, mirror__result="miss")
    assert {span.name for span in collector.below(miss)} == {"flight tag", "flight manifest"}
    head, get = (collector.below(collector.one(f"flight {what}")) for what in ("tag", "manifest"))
    assert [span.name for span in head + get] == ["HEAD", "GET"]
    hits = [
        span for span in collector.named(GET_MANIFEST) if span.attributes["mirror.result"] == "hit"
    ]
    assert [collector.below(hit) for hit in hits] == [[], []]


async def test_who_joins_a_fill_is_linked_to_it(traced, upstream, collector):
    upstream.hold(MIB)
    digest = upstream.add_blob(random_bytes(2 * MIB))
    async with traced() as mirror:
        pulls = [asyncio.create_task(mirror.get(BLOB + digest))]
        await until(lambda: upstream.sent[digest] > 0)
        pulls += [asyncio.create_task(mirror.get(BLOB + digest)) for _ in range(2)]
        await eventually(mirror, "mirror_clients_waiting", 3)
        upstream.release()
        await asyncio.gather(*pulls)
    fill = collector.one("fill")
    leader = collector.one(GET_BLOB, mirror__result="miss")
    assert fill.parent == leader.id
    followers = [
        span
        for span in collector.named(GET_BLOB)
        if span.attributes["mirror.result"] == "coalesced"
    ]
    assert [span.links for span in followers] == [(fill.id,)] * 2
    assert len({span.trace for span in [leader, *followers]}) == 3


async def test_what_goes_wrong_is_marked_all_the_way(traced, upstream, collector):
    digest = upstream.add_blob(random_bytes(MIB))
    upstream.faults = [Fault(status=505, times=10)]
    async with traced() as mirror:
        assert (await mirror.get(BLOB + digest)).status == 502
    request = collector.one(GET_BLOB)
    (fill,) = collector.below(request)
    (asked,) = collector.below(fill)
    assert [span.failed for span in (request, fill, asked)] == [True, True, True]
    assert request.attributes["error.type"] == "502"
    assert fill.attributes["error.type"] == "UnavailableError"
    assert asked.attributes["error.type"] == "505"


async def test_the_trace_of_a_client_goes_on_and_is_passed_to_the_registry_alone(
    traced, upstream, collector
):
    async with FakeRegistry() as storage:
        digest = upstream.add_blob(random_bytes(MIB))
        storage.blobs = upstream.blobs
        upstream.redirect_blobs_to = lambda digest: (
            f"{storage.url}{BLOB}{digest}?X-Signature=secret"
        )
        table = {"url": upstream.url, "private_redirects": True}
        async with traced(table) as mirror:
            fields = {"traceparent": TRACEPARENT, "tracestate": "vendor=client-secret"}
            await mirror.get(BLOB + digest, **fields)
        there, beyond = upstream.seen[-1].headers, storage.seen[-1].headers
    request = collector.one(GET_BLOB)
    assert (request.trace.hex(), request.parent.hex()) == (TRACE, PARENT)
    asked = collector.one("GET", url__full=f"{upstream.url}{BLOB}{digest}")
    assert there["traceparent"] == f"00-{TRACE}-{asked.id.hex()}-01"
    assert "tracestate" not in {name.lower() for name in there}
    assert "traceparent" not in {name.lower() for name in beyond}
    redirected = collector.one("GET", server__port=storage.port)
    assert redirected.attributes["url.full"].rstrip("/") == storage.url
    assert "secret" not in repr(collector.spans)


async def test_no_credentials_are_in_any_span(traced, upstream, collector):
    upstream.add_image(REPO, APP, "1")
    table = {"url": upstream.url, "username": "me", "password": "upstream-secret"}
    async with traced(table) as mirror:
        await mirror.get(f"{TAG}?token=query-secret", Authorization="Basic client-secret")
    assert collector.spans
    assert "secret" not in repr(collector.spans)


@pytest.mark.parametrize(
    ("sample", "traceparent", "spans"),
    [(0.0, TRACEPARENT, 0), (1.0, TRACEPARENT, 1), (1.0, TRACEPARENT[:-1] + "0", 0), (1.0, "?", 1)],
)
async def test_a_client_may_ask_not_to_be_traced_and_no_more(
    traced, upstream, collector, sample, traceparent, spans
):
    async with traced(sample=sample) as mirror:
        await mirror.get("/v2/", traceparent=traceparent)
        await mirror.get("/healthz", traceparent=traceparent)
    assert len(collector.spans) == spans


@pytest.mark.long
async def test_a_collector_that_is_gone_slows_nobody_and_is_told_once(tmp_path, upstream, caplog):
    upstream.add_image(REPO, APP, "1")
    tracing = {"endpoint": f"http://127.0.0.1:{free_port()}"}
    async with running(tmp_path / "cache", {HUB: upstream.url}, tracing=tracing) as mirror:
        for _ in range(600):
            assert (await mirror.get("/v2/")).status == 200
        started = time.monotonic()
        assert (await mirror.get(TAG)).body == APP.manifest
        assert time.monotonic() - started < 5, "less than the time-out of a delivery"
        await asyncio.sleep(0)
        started = time.monotonic()
    assert time.monotonic() - started < 9, "two deliveries would take ten seconds"
    told = [record for record in caplog.records if "span" in record.getMessage()]
    assert 1 <= len(told) <= 2
    assert not [record for record in caplog.records if record.name.startswith("opentelemetry")]


@pytest.mark.long
def test_without_the_extra_an_endpoint_is_one_clear_line(tmp_path):
    program = (
        "import sys; sys.modules['opentelemetry'] = None; "
        "from mirror.cli.root import main; sys.argv[0] = 'mirror'; main()"
    )
    (tmp_path / "mirror.toml").write_text('[tracing]\nendpoint = "http://127.0.0.1:4318"\n')
    arguments = ["serve", "--config", str(tmp_path / "mirror.toml"), "--listen", "127.0.0.1:0"]
    command = [sys.executable, "-c", program, *arguments, "--cache-dir", str(tmp_path / "cache")]
    for more in ([], ["--workers", "2"]):
        done = subprocess.run(
            [*command, *more], capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False
        )
        assert done.returncode == 1
        assert done.stderr == (
            "mirror: [tracing] endpoint is set, but OpenTelemetry is not installed: "
            "pip install opentelemetry-sdk opentelemetry-exporter-otlp-proto-http, "
            "or leave endpoint empty\n"
        )


@pytest.mark.parametrize("sample", [1.0, 0.0])
async def test_the_log_leads_to_the_trace_if_it_is_collected(
    traced, upstream, collector, caplog, sample
):
    caplog.set_level("DEBUG", "mirror.access")
    upstream.add_image(REPO, APP, "1")
    async with traced(sample=sample) as mirror:
        await mirror.get(TAG)
    lines = [each for each in caplog.records if each.name == "mirror.access"]
    assert [each.getMessage()[:9] for each in lines] == ["request", "docker.io"]
    traces = {getattr(each, "trace_id", "") for each in lines}
    assert traces == ({collector.one(GET_MANIFEST).trace.hex()} if sample else {""})
