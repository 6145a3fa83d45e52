"""``config/constraints.txt``: each pinned version installs on the oldest Python promised."""

import importlib.metadata
import re
import tomllib
from pathlib import Path

from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]


def test_pinned_versions_accept_the_oldest_python():
    # pip says only "conflicting dependencies" where one of them does not: Debian 12 has 3.11.2.
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    oldest = re.sub(r"[^0-9.]", "", project["requires-python"]) + ".0"
    pinned = dict(re.findall(r"^([\w.-]+)==(\S+)", _constraints(), re.MULTILINE))
    refused = {}
    for installed in importlib.metadata.distributions():
        name = canonicalize_name(installed.metadata["Name"])
        wanted = installed.metadata["Requires-Python"]
        if pinned.get(name) == installed.version and wanted and oldest not in SpecifierSet(wanted):
            refused[f"{name}=={installed.version}"] = wanted
    assert not refused


def _constraints() -> str:
    return (ROOT / "config" / "constraints.txt").read_text()
