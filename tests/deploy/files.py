"""The files that are deployed, as values."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

CONFIG = Path(__file__).parents[2] / "config"
PROMETHEUS = CONFIG / "prometheus"
VARIABLES = {"$__rate_interval": "1m", "$__range": "1h", "$upstream": ".*", "$instance": ".*"}


def yaml_of(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def rules(name: str) -> list[dict[str, Any]]:
    return [rule for group in yaml_of(PROMETHEUS / name)["groups"] for rule in group["rules"]]


def dashboard() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((CONFIG / "grafana" / "dashboard.json").read_text())
    return found


def panels(board: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """All but the headings."""
    return (panel for panel in board["panels"] if panel["type"] != "row")


def targets(board: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every query with the title of its panel."""
    for panel in panels(board):
        yield from ((panel["title"], target) for target in panel["targets"])


def filled_in(expression: str) -> str:
    """A dashboard's expression as Grafana sends it."""
    for variable, value in VARIABLES.items():
        expression = expression.replace(variable, value)
    return expression
