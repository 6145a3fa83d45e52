"""Scrape config, rules, alerts and dashboard: valid, tested, and about figures that exist."""

import re
import subprocess
from collections.abc import Iterator

import pytest
import yaml

from tests.deploy.files import (
    PROMETHEUS,
    dashboard,
    filled_in,
    rules,
    targets,
    yaml_of,
)
from tests.deploy.promql import Series, series, unknown
from tests.deploy.traffic import watched
from tests.peers.requirements import need

pytestmark = [pytest.mark.slow]


_TARGET = {"job": "mirror", "instance": "mirror:5000"}
_RECORDED = re.compile(r"[a-z]+(_[a-z]+)*:mirror(_[a-z0-9]+)+:[a-z0-9_]+")


def promtool(*arguments: str) -> str:
    """What it says; it must be content."""
    need("promtool")
    run = subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


@pytest.fixture
async def known(tmp_path) -> Series:
    """The series of a mirror that has seen everything, and those that rules make of them."""
    async with watched(tmp_path / "cache") as mirror:
        await mirror.round()
        scraped = series(await mirror.mirror.metrics(), **_TARGET)
    found = {**scraped, "up": [_TARGET]}
    for rule in rules("rules.yml"):
        level = rule["record"].partition(":")[0]
        found[rule["record"]] = [dict.fromkeys(level.split("_"), "")]
    return found


def expressions() -> Iterator[tuple[str, str, list[str]]]:
    """Where each expression stands, what it is, and the labels that are put into its texts."""
    for name in ("rules.yml", "alerts.yml"):
        for rule in rules(name):
            texts = " ".join(rule.get("annotations", {}).values())
            where = rule.get("record") or rule["alert"]
            yield where, rule["expr"], re.findall(r"\$labels\.(\w+)", texts)
    for title, target in targets(dashboard()):
        used = re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])
        yield f"panel {title}", target["expr"], used
    for variable in dashboard()["templating"]["list"]:
        if variable["type"] == "query":
            found = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"])
            assert found, variable["query"]
            yield f"variable {variable['name']}", found[1], [found[2]]
    for note in dashboard()["annotations"]["list"]:
        if "expr" in note:
            texts = note["titleFormat"] + note["textFormat"]
            yield f"annotation {note['name']}", note["expr"], re.findall(r"\{\{(\w+)\}\}", texts)


def test_prometheus_accepts_the_configuration_and_both_rule_files():
    said = promtool("check", "config", str(PROMETHEUS / "prometheus.yml"))
    assert "2 rule files found" in said


@pytest.mark.long
def test_the_rules_compute_what_they_should_and_alerts_fire_when_they_should():
    promtool("test", "rules", str(PROMETHEUS / "tests.yml"))


def test_prometheus_can_parse_every_expression_of_the_dashboard(tmp_path):
    named = [
        {"record": f"panel:{number}", "expr": filled_in(expression)}
        for number, (_, expression, _) in enumerate(expressions())
    ]
    file = tmp_path / "panels.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": named}]}))
    promtool("check", "rules", str(file))


async def test_every_metric_label_and_value_that_is_asked_for_exists_in_a_running_mirror(known):
    problems = {
        where: found
        for where, expression, used in expressions()
        if (found := unknown(expression, known, used))
    }
    assert not problems


@pytest.mark.parametrize(
    ("expression", "problem"),
    [
        ("sum(rate(mirror_request_total[5m]))", "no metric mirror_request_total"),
        ("mirror_cache_bytes / mirror_cache_limit_bytes", "no metric mirror_cache_limit_bytes"),
        ("mirror_upstream_up offset 1h and gone", "no metric gone"),
        ("job:mirror_hits:rate5m > 0", "no metric job:mirror_hits:rate5m"),
        ('mirror_fills_total{kind="blob"}', "mirror_fills_total has no label kind"),
        ('mirror_requests_total{result="cached"}', "mirror_requests_total has no result cached"),
        ('mirror_requests_total{result=~"hit|cold"}', "mirror_requests_total has no result cold"),
        ('mirror_requests_total{result!~"eror"}', "mirror_requests_total has no result eror"),
        ("sum by (repository) (mirror_requests_total)", "no label repository"),
        ("mirror_cache_bytes * on (shelf) mirror_cache_objects", "no label shelf"),
        ("job:mirror_saved_bytes:rate5m{upstream=~'$upstream'}".replace("'", '"'), "upstream"),
    ],
)
async def test_a_name_that_does_not_exist_is_found(known, expression, problem):
    (found,) = unknown(expression, known)
    assert problem in found


async def test_a_label_of_a_text_that_does_not_exist_is_found(known):
    assert unknown("mirror_upstream_up", known, ["registry"]) == ["no label registry"]


def test_recording_rules_are_named_level_metric_operations_and_each_has_a_test():
    names = [rule["record"] for rule in rules("rules.yml")]
    assert [name for name in names if not _RECORDED.fullmatch(name)] == []
    tested = " ".join(
        case["expr"]
        for test in yaml_of(PROMETHEUS / "tests.yml")["tests"]
        for case in test.get("promql_expr_test", [])
        if case["exp_samples"]
    )
    assert [name for name in names if name not in tested] == []


def test_every_alert_is_tested_firing_and_silent_and_says_what_to_do():
    tests = yaml_of(PROMETHEUS / "tests.yml")["tests"]
    cases = [case for test in tests for case in test.get("alert_rule_test", [])]
    for rule in rules("alerts.yml"):
        mine = [case for case in cases if case["alertname"] == rule["alert"]]
        assert {bool(case["exp_alerts"]) for case in mine} == {True, False}, rule["alert"]
        assert rule["labels"]["severity"] in {"critical", "warning"}
        assert set(rule["annotations"]) == {"summary", "description"}


def test_the_scrape_job_has_the_name_that_the_alert_knows():
    jobs = {job["job_name"] for job in yaml_of(PROMETHEUS / "prometheus.yml")["scrape_configs"]}
    (down,) = (rule["expr"] for rule in rules("alerts.yml") if rule["alert"] == "MirrorDown")
    assert set(re.findall(r'job="(\w+)"', down)) == jobs
