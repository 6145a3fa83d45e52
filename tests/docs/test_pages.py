"""The pages say what the code says: keys, metrics, fields, and the files they name."""

import re
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from mirror import __version__
from mirror.metrics.cluster import ClusterMetrics
from tests.running import Mirror
from tools.configuration_reference import PAGE, page

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").rglob("*.md"))]
#: docs/faults.md names tests by their path below `tests/`: config/test_mistakes.py.
_FILE = re.compile(r"`((?:mirror|tests|config(?!/test_))/[\w./-]+)`")


@pytest.mark.long
def test_the_reference_of_keys_is_the_one_that_the_code_makes() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "make docs"


@pytest.mark.parametrize("file", PAGES, ids=lambda file: str(file.relative_to(ROOT)))
def test_the_files_that_a_page_names_exist(file: Path) -> None:
    named = _FILE.findall(file.read_text(encoding="utf-8"))
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_page_about_several_mirrors_has_the_file_for_nginx() -> None:
    file = (ROOT / "config/nginx/several-mirrors.conf").read_text(encoding="utf-8")
    page = (ROOT / "docs/several-mirrors.md").read_text(encoding="utf-8")
    assert f"```nginx\n{file}```\n" in page


def test_each_fault_names_its_test() -> None:
    rows = (ROOT / "docs/faults.md").read_text(encoding="utf-8").splitlines()
    faults = [row.split(" | ") for row in rows if row.startswith("| ")]
    tests = [cells[-1] for cells in faults if cells[0] != "| fault"]
    assert len(tests) > 50
    for cell in tests:
        named = re.findall(r"`([\w./]+)`", cell)
        assert named, cell
        assert [name for name in named if not (ROOT / "tests" / name).exists()] == []


async def test_the_page_names_each_metric_and_no_other(mirror: Mirror) -> None:
    of_cluster = CollectorRegistry()
    ClusterMetrics(of_cluster)
    text = (await mirror.get("/metrics")).body.decode() + generate_latest(of_cluster).decode()
    served = set(re.findall(r"^# TYPE (mirror_\w+) ", text, re.MULTILINE))
    rows = (ROOT / "docs/monitoring.md").read_text(encoding="utf-8").splitlines()
    table = [row for row in rows if row.startswith("| `mirror_")]
    named = {name for row in table for name in re.findall(r"`(mirror_\w+)`", row)}
    assert named == served


@pytest.mark.parametrize("page", ["monitoring", "operations"])
def test_each_alert_is_explained_and_no_other(page: str) -> None:
    alerts = (ROOT / "config/prometheus/alerts.yml").read_text(encoding="utf-8")
    rows = (ROOT / f"docs/{page}.md").read_text(encoding="utf-8").splitlines()
    table = [row.split(" | ")[0] for row in rows if row.startswith("| `Mirror")]
    named = re.findall(r"`(Mirror\w+)`", " ".join(table))
    assert sorted(named) == sorted(re.findall(r"- alert: (\w+)", alerts))


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 900


def test_the_version_is_the_same_everywhere() -> None:
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert set(re.findall(r"\bmirror (\d+\.\d+\.\d+)\b", text)) == {__version__}
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    latest = re.search(r"^## (.+) - \d{4}-\d\d-\d\d$", changes, re.MULTILINE)
    assert latest is not None
    assert latest[1] == __version__
