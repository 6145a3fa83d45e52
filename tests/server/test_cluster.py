"""A mirror without a cluster, and a cluster without its libraries."""

import subprocess
import sys

import pytest

from tests.waiting import LIMIT_SECONDS

pytestmark = [pytest.mark.slow]


def printed(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
        check=False,
    )


def test_a_mirror_without_a_cluster_imports_nothing_for_one(tmp_path):
    program = f"""
import asyncio, sys
from pathlib import Path
from mirror.server import serving
from tests.running import configured

async def main():
    async with serving(configured(Path({str(tmp_path)!r}), {{}}), asyncio.Event()):
        pass

asyncio.run(main())
print([name for name in sys.modules if name.split(".")[0] in ("redis", "obstore")])
print([name for name in sys.modules if name.startswith("mirror.cluster")])
"""
    assert printed(program).stdout.splitlines() == ["[]", "[]"]


@pytest.mark.long
@pytest.mark.parametrize("library", ["redis", "obstore"])
def test_a_cluster_without_its_libraries_is_one_line(tmp_path, library):
    config = tmp_path / "mirror.toml"
    config.write_text('[cluster]\nstate = "redis://127.0.0.1:1"\n')
    done = printed(
        f"""
import sys
sys.modules[{library!r}] = None
from mirror.cli.root import main
sys.argv = ["mirror", "serve", "--config", {str(config)!r}, "--listen", "127.0.0.1:0"]
sys.argv += ["--cache-dir", {str(tmp_path / "cache")!r}]
main()
"""
    )
    assert done.returncode == 1
    assert done.stderr == (
        f"mirror: [cluster] needs the library {library}: pip install 'container-mirror[cluster]'\n"
    )
