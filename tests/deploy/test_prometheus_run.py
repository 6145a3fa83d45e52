"""Prometheus itself, with our files, at a mirror under load: rules and panels have figures."""

import asyncio
import json
import shutil
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

import pytest

from tests.deploy.files import PROMETHEUS, dashboard, filled_in, rules, targets
from tests.deploy.traffic import watched
from tests.peers.process import Process, free_port
from tests.peers.requirements import need
from tests.waiting import LIMIT_SECONDS, limit

pytestmark = [pytest.mark.e2e]


def api(port: int, path: str, **query: str) -> Any:
    """The data of an answer; None while Prometheus is not there yet."""
    url = f"http://127.0.0.1:{port}/api/v1/{path}?{urllib.parse.urlencode(query)}"
    try:
        with urllib.request.urlopen(url, timeout=LIMIT_SECONDS) as response:
            return json.load(response)["data"]
    except urllib.error.HTTPError as error:
        if error.code == 503:
            return None
        raise AssertionError(f"{query}: {error.read().decode()}") from error
    except OSError:
        return None


def without_figures(port: int) -> list[str]:
    """Rules and panels that have no value yet."""
    wanted = {rule["record"]: rule["record"] for rule in rules("rules.yml")}
    wanted |= {
        f"{title}, {target['refId']}": filled_in(target["expr"])
        for title, target in targets(dashboard())
    }
    found = {name: api(port, "query", query=query) for name, query in wanted.items()}
    return [name for name, data in found.items() if not data or not _numbers(data["result"])]


def _numbers(result: list[dict[str, Any]]) -> list[float]:
    values = [float(sample["value"][1]) for sample in result]
    return [value for value in values if value == value]  # noqa: PLR0124  # not NaN


def alerts(port: int) -> set[str]:
    """Those that fire or wait to."""
    return {alert["labels"]["alertname"] for alert in api(port, "alerts")["alerts"]}


def quiet(firing: set[str]) -> bool:
    """Whether there are alerts for what the traffic does wrong, and for nothing else."""
    missing = {"MirrorRateLimited", "MirrorDigestMismatch"} - firing
    return not missing | firing & {"MirrorDown", "MirrorCacheTooSmall", "MirrorDiskNearlyFull"}


@pytest.mark.long
async def test_every_rule_and_every_panel_has_a_figure(tmp_path):
    need("prometheus")
    async with watched(tmp_path / "cache") as mirror:
        for name in ("prometheus.yml", "rules.yml", "alerts.yml"):
            shutil.copy(PROMETHEUS / name, tmp_path)
        config, port = tmp_path / "prometheus.yml", free_port()
        # The same files in a hurry.
        text = config.read_text().replace("15s", "1s")
        target = mirror.mirror.url.removeprefix("http://")
        config.write_text(text.replace("mirror:5000", target))
        hourly = tmp_path / "rules.yml"
        hourly.write_text(hourly.read_text().replace("interval: 5m", "interval: 1s"))
        command = ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={tmp_path}/tsdb"]
        command += [f"--web.listen-address=127.0.0.1:{port}"]
        prometheus = Process(command, tmp_path / "prometheus.log")
        missing = ["all of it"]
        try:
            async with limit():
                while missing:
                    await mirror.round()
                    await asyncio.sleep(0.5)
                    missing = await asyncio.to_thread(without_figures, port)
            # What the traffic does wrong on purpose is seen; that all else is quiet, too. A scrape
            # has a second: on a busy machine the mirror seems to be down now and then.
            async with limit():
                while not quiet(await asyncio.to_thread(alerts, port)):
                    await mirror.round()
                    await asyncio.sleep(0.5)
        except TimeoutError:
            said = await asyncio.to_thread(alerts, port)
            pytest.fail(f"no figures: {missing}, {said}\n{prometheus.output()[-2000:]}")
        finally:
            await asyncio.to_thread(prometheus.terminate)
