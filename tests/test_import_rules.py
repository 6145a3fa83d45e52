"""The import rules hold."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.waiting import LIMIT_SECONDS

pytestmark = [pytest.mark.slow]


ROOT = Path(__file__).parents[1]
PACKAGES = ("http/", "api/", "ui/", "proxy/")
MAY_IMPORT_WEB = {
    *("server/access.py", "server/control.py", "server/generation.py", "server/serve.py"),
}


def test_imports_go_downward_only() -> None:
    linted = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False,
    )  # fmt: skip
    assert linted.returncode == 0, linted.stdout


@pytest.mark.long
def test_aiohttp_web_is_imported_by_the_http_packages_only() -> None:
    """lint-imports sees packages from outside only as a whole."""
    importers = {
        file.relative_to(ROOT / "mirror").as_posix()
        for file in (ROOT / "mirror").rglob("*.py")
        if any(map(_is_aiohttp_web, ast.walk(ast.parse(file.read_text(encoding="utf-8")))))
    }
    assert "http/server.py" in importers
    assert {name for name in importers if not name.startswith(PACKAGES)} <= MAY_IMPORT_WEB


def _is_aiohttp_web(node: ast.AST) -> bool:
    if isinstance(node, ast.Import):
        return any(alias.name.startswith("aiohttp.web") for alias in node.names)
    if not isinstance(node, ast.ImportFrom) or node.module is None:
        return False
    from_package = node.module == "aiohttp" and any(alias.name == "web" for alias in node.names)
    return from_package or node.module.startswith("aiohttp.web")
