"""The geometry of the charts: what a period becomes on the page."""

from mirror.stats.report import Figures, History
from mirror.ui.charts import daily, hourly, spark, sparks

NOON = 1_773_489_600.0  # 2026-03-14 12:00 UTC
HOUR = int(NOON // 3600)


def figures(hits: int, misses: int, served: int = 0, fetched: int = 0) -> Figures:
    return Figures({"hit": hits, "miss": misses}, served, fetched)


def test_hours_without_requests_leave_a_gap_in_the_line():
    hours = {HOUR - 3: figures(1, 1), HOUR - 1: figures(3, 1), HOUR: figures(1, 0)}
    chart = hourly(History({hour: {"hub": each} for hour, each in hours.items()}), NOON, 4)
    assert chart.line == "M5 50.0h0M25 25.0h0L35 0.0"
    assert (chart.width, chart.lowest, chart.total.hit_rate) == (40, 0.5, 5 / 7)


def test_bars_are_scaled_to_the_largest_and_none_is_too_small_to_see():
    days = {
        "2026-03-13": {"hub": figures(1, 1, 1000, 1)},
        "2026-03-14": {"hub": figures(0, 1, 500)},
    }
    chart = daily(History(days=days), ["2026-03-12", "2026-03-13", "2026-03-14"])
    assert [(bar.kind, bar.height, bar.y) for bar in chart.bars] == [
        ("served", 100, 0),
        ("fetched", 1.5, 98.5),
        ("served", 50, 50),
    ]
    assert chart.most == 1000
    assert [slot.label for slot in chart.slots] == [
        "12\N{NO-BREAK SPACE}Mar",
        "13\N{NO-BREAK SPACE}Mar",
        "14\N{NO-BREAK SPACE}Mar",
    ]


def test_an_empty_history_has_no_line_and_no_bars():
    chart = hourly(History(), NOON, 24)
    assert (chart.line, chart.bars, chart.lowest, chart.most) == ("", [], None, 0)
    assert len(chart.slots) == 24
    assert spark([0, 0]) == spark([]) == []


def test_each_upstream_has_a_small_chart_of_its_own():
    days = {
        "a": {"hub": figures(1, 0, 10)},
        "b": {"hub": figures(1, 0, 5), "quay": figures(1, 0, 1)},
    }
    found = sparks(History(days=days), ["a", "b"])
    assert [(bar.x, bar.height) for bar in found["hub"]] == [(1, 100), (11, 50)]
    assert [(bar.x, bar.height) for bar in found["quay"]] == [(11, 100)]
