"""Prometheus itself computes hit rate and bytes saved, with the two lines of docs/monitoring.md."""

import asyncio
import json
import re
import urllib.parse
import urllib.request
from pathlib import Path

import pytest

from tests.fakes import random_bytes
from tests.peers.process import Process, free_port
from tests.peers.requirements import need
from tests.waiting import LIMIT_SECONDS, limit

pytestmark = [pytest.mark.e2e]

PAGE = Path(__file__).parents[2] / "docs" / "monitoring.md"
SCRAPE = """\
global: {{scrape_interval: 1s}}
scrape_configs:
  - job_name: mirror
    static_configs: [{{targets: ["{target}"]}}]
"""


def ask(port: int, query: str) -> float | None:
    """The value of an instant query, None while there is none."""
    url = f"http://127.0.0.1:{port}/api/v1/query?query={urllib.parse.quote(query)}"
    with urllib.request.urlopen(url, timeout=LIMIT_SECONDS) as response:
        result = json.load(response)["data"]["result"]
    return float(result[0]["value"][1]) if result else None


@pytest.mark.long
async def test_the_promql_of_the_page_gives_hit_rate_and_bytes_saved(mirror, upstream, tmp_path):
    need("prometheus")
    hit_rate, bytes_saved = re.findall(r"```promql\n(.+)\n```", PAGE.read_text())
    data = random_bytes(1 << 20)
    digest = upstream.add_blob(data)
    for _ in range(5):
        await mirror.get(f"/v2/library/app/blobs/{digest}")
    await mirror.get("/v2/library/app/blobs/sha256:" + "0" * 64)

    config, port = tmp_path / "prometheus.yml", free_port()
    config.write_text(SCRAPE.format(target=mirror.url.removeprefix("http://")))
    command = ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={tmp_path}/tsdb"]
    command += [f"--web.listen-address=127.0.0.1:{port}"]
    prometheus = Process(command, tmp_path / "prometheus.log")
    try:
        async with limit():
            while True:
                try:
                    saved = await asyncio.to_thread(ask, port, bytes_saved)
                except OSError:
                    saved = None
                if saved is not None:
                    break
                await asyncio.sleep(0.05)
        assert saved == 4 * len(data)
        assert await asyncio.to_thread(ask, port, hit_rate) == pytest.approx(4 / 5)
    finally:
        await asyncio.to_thread(prometheus.terminate)
