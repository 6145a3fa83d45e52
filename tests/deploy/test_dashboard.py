"""The dashboard: what Grafana needs to draw it, and what a person needs to read it."""

from itertools import combinations
from typing import Any

import pytest

from tests.deploy.files import CONFIG, dashboard, filled_in, panels, targets, yaml_of
from tests.deploy.promql import Matcher, parse


@pytest.fixture
def board() -> dict[str, Any]:
    return dashboard()


def overlap(one: dict[str, Any], other: dict[str, Any]) -> bool:
    a, b = one["gridPos"], other["gridPos"]
    beside = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
    above = a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]
    return not beside and not above


def test_panels_have_an_id_and_a_place_of_their_own(board):
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
    pairs = combinations(board["panels"], 2)
    assert [(a["title"], b["title"]) for a, b in pairs if overlap(a, b)] == []
    assert all(p["gridPos"]["x"] + p["gridPos"]["w"] <= 24 for p in board["panels"])


def test_a_screen_on_the_wall_shows_all_but_the_details_without_scrolling(board):
    heading = next(panel for panel in board["panels"] if panel["type"] == "row")
    row_pixels = 38  # of Grafana's grid, its gap included
    assert heading["gridPos"]["y"] * row_pixels < 1080 - 80  # its own head in kiosk mode


def test_panels_side_by_side_that_touch_do_not_overlap_and_others_do():
    def at(x: int, y: int) -> dict[str, Any]:
        return {"gridPos": {"x": x, "y": y, "w": 8, "h": 8}}

    assert not overlap(at(0, 0), at(8, 0))
    assert not overlap(at(0, 0), at(0, 8))
    assert overlap(at(0, 0), at(7, 7))


def test_every_panel_says_what_it_shows_in_which_unit(board):
    for panel in panels(board):
        assert len(panel["description"]) > 20, panel["title"]
        defaults = panel["fieldConfig"]["defaults"]
        assert defaults["unit"], panel["title"]
        assert defaults["thresholds"]["steps"][0]["value"] is None, panel["title"]


def test_every_query_asks_the_chosen_prometheus_for_something(board):
    chosen = {"type": "prometheus", "uid": "${datasource}"}
    assert len(list(targets(board))) >= len(list(panels(board)))
    for title, target in targets(board):
        assert target["expr"], title
        assert target["datasource"] == chosen, title
    assert all(panel["datasource"] == chosen for panel in panels(board))
    for panel in panels(board):
        names = [target["refId"] for target in panel["targets"]]
        assert len(set(names)) == len(names), panel["title"]


def test_prometheus_upstreams_and_mirrors_can_be_chosen(board):
    variables = {variable["name"]: variable for variable in board["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert variables["datasource"]["query"] == "prometheus"
    for name in ("upstream", "instance"):
        chosen = variables[name]
        assert (chosen["multi"], chosen["includeAll"], chosen["allValue"]) == (True, True, ".*")


def test_every_figure_follows_the_choice_of_mirrors(board):
    for title, target in targets(board):
        for selector in parse(filled_in(target["expr"])).selectors:
            assert Matcher("instance", "=~", ".*") in selector[1], (title, selector)


@pytest.mark.parametrize("metric", ["requests", "served_bytes", "upstream_bytes"])
def test_several_mirrors_are_shown_together_and_each(board, metric):
    asked = [
        target["expr"] for _, target in targets(board) if f"mirror_{metric}_" in target["expr"]
    ]
    assert any("sum(rate(" in each for each in asked)
    assert any("sum by (instance) (rate(" in each for each in asked)


def test_what_has_an_upstream_follows_the_choice_of_upstreams(board):
    with_upstream = (
        "mirror_requests_total",
        "mirror_served_bytes_total",
        "mirror_upstream_",
        "mirror_fills_total",
    )
    for title, target in targets(board):
        for name in with_upstream:
            asked = target["expr"].count(name)
            assert target["expr"].count('upstream=~"$upstream"') >= asked, title


def test_grafana_is_told_where_prometheus_and_the_dashboard_are():
    provisioning = CONFIG / "grafana" / "provisioning"
    (source,) = yaml_of(provisioning / "datasources" / "prometheus.yaml")["datasources"]
    (provider,) = yaml_of(provisioning / "dashboards" / "mirror.yaml")["providers"]
    compose = yaml_of(CONFIG / "compose.yaml")["services"]
    host, port = source["url"].removeprefix("http://").split(":")
    assert f"127.0.0.1:{port}:{port}" in compose[host]["ports"]
    mounts = [volume.split(":")[:2] for volume in compose["grafana"]["volumes"]]
    directory = provider["options"]["path"]
    assert ["./grafana/dashboard.json", f"{directory}/dashboard.json"] in mounts
