"""What Prometheus sees after a known sequence of pulls."""

import asyncio
import shutil
import time

from prometheus_client.openmetrics.parser import text_string_to_metric_families

from mirror.store.local.disk_usage import in_blocks
from tests.fakes import image, random_bytes
from tests.running import eventually

HUB = 'upstream="docker.io"'


async def test_each_counter_has_the_value_that_the_sequence_implies(mirror, upstream):
    app = image(random_bytes(200_000), random_bytes(300_000, seed=1))
    upstream.add_image("library/app", app, "1")
    size = sum(map(len, app.blobs))

    async def pull() -> None:
        """As dockerd does it: HEAD and GET the tag's manifest, then every blob."""
        await mirror.get("/v2/", "GET")
        head = await mirror.get("/v2/library/app/manifests/1", "HEAD")
        digest = head.headers["Docker-Content-Digest"]
        await mirror.get(f"/v2/library/app/manifests/{digest}")
        for blob in upstream.blobs:
            await mirror.get(f"/v2/library/app/blobs/{blob}")

    for _ in range(3):
        await pull()
    await mirror.get("/v2/library/app/manifests/2")
    await mirror.get("/v2/elsewhere.example.com/app/manifests/1")
    await eventually(mirror, f'mirror_fills_total{{result="stored",{HUB}}}', 3)
    figures = await mirror.metrics()

    def requests(kind: str, result: str) -> float:
        return figures[f'mirror_requests_total{{kind="{kind}",result="{result}",{HUB}}}']

    assert requests("manifest", "miss") == 2, "the first HEAD and the first GET"
    assert requests("manifest", "hit") == 4
    assert requests("manifest", "negative") == 1
    assert requests("blob", "miss") == 3
    assert requests("blob", "hit") == 6
    assert figures['mirror_requests_total{kind="manifest",result="denied",upstream="unknown"}'] == 1
    assert figures[f'mirror_served_bytes_total{{kind="blob",{HUB}}}'] == 3 * size
    assert figures[f'mirror_upstream_bytes_total{{kind="blob",{HUB}}}'] == size
    assert figures[f'mirror_served_bytes_total{{kind="manifest",{HUB}}}'] == 3 * len(app.manifest)
    assert figures[f'mirror_upstream_bytes_total{{kind="manifest",{HUB}}}'] == len(app.manifest)
    sent = 'mirror_upstream_requests_total{code="%s",kind="%s",method="%s",upstream="docker.io"}'
    assert figures[sent % (200, "manifest", "HEAD")] == 1
    assert figures[sent % (404, "manifest", "HEAD")] == 1
    assert figures[sent % (200, "manifest", "GET")] == 1
    assert figures[sent % (200, "blob", "GET")] == 3
    assert figures['mirror_request_seconds_count{kind="blob",result="hit"}'] == 6
    assert figures['mirror_transfer_seconds_count{kind="blob",result="miss"}'] == 3
    assert figures['mirror_transfer_seconds_count{kind="blob",result="hit"}'] == 6
    assert figures['mirror_transfer_seconds_count{kind="manifest",result="hit"}'] == 2, "no HEAD"
    assert figures[f"mirror_upstream_up{{{HUB}}}"] == 1
    assert figures[f'mirror_fills_total{{result="stored",{HUB}}}'] == 3
    assert figures["mirror_fills_in_progress"] == figures["mirror_clients_waiting"] == 0
    assert figures["mirror_cache_objects"] == 4
    assert figures["mirror_cache_bytes"] == sum(
        in_blocks(len(each), 4096) for each in (*upstream.blobs.values(), app.manifest)
    )


async def test_the_process_its_disk_and_its_connections_are_measured(mirror, tmp_path):
    figures = await mirror.metrics()
    assert figures["process_resident_memory_bytes"] > 0
    assert 0 < figures["process_open_fds"] <= figures["process_max_fds"]
    assert 0 < figures["mirror_disk_free_bytes"] <= shutil.disk_usage(tmp_path).total
    assert figures["mirror_config_last_reload_successful"] == 1
    assert figures["mirror_config_last_reload_success_timestamp_seconds"] <= time.time()
    assert figures["mirror_connections"] == 1
    _, writer = await asyncio.open_connection(*mirror.url.removeprefix("http://").split(":"))
    await eventually(mirror, "mirror_connections", 2)
    writer.close()
    await eventually(mirror, "mirror_connections", 1)


async def test_an_openmetrics_scraper_gets_the_same_metrics(mirror, upstream):
    digest = upstream.add_blob(random_bytes(1000))
    await mirror.get(f"/v2/library/app/blobs/{digest}")
    await eventually(mirror, f'mirror_fills_total{{result="stored",{HUB}}}', 1)
    accept = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3"
    answer = await mirror.get("/metrics", Accept=accept)
    assert answer.headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
    families = list(text_string_to_metric_families(answer.body.decode()))
    names = {sample.name for family in families for sample in family.samples}
    assert names == {name.partition("{")[0] for name in await mirror.metrics()}


async def test_the_health_of_the_mirror_does_not_hang_on_upstream(mirror, upstream):
    await upstream.stop()
    assert (await mirror.get("/healthz")).status == 200
    assert (await mirror.get("/readyz")).status == 200
    assert (await mirror.get("/v2/")).headers["Docker-Distribution-Api-Version"] == "registry/2.0"
    await upstream.start()


async def test_the_page_for_people_says_how_to_point_docker_here(mirror):
    page = await mirror.get("/")
    assert f'{{"registry-mirrors": ["{mirror.url}"]}}'.encode() in page.body
